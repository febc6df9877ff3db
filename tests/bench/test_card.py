"""Tests `python -m bench.card`: the networks have the real sizes, and every measurement runs with small networks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.card.models import TRUE
from bench.card.report import HEAD, Cells, Report
from trial.autoencoder import Autoencoder
from trial.unet import UNet

ROOT = Path(__file__).resolve().parents[2]

RUN = """
import sys
sys.modules.update(dict.fromkeys(["PIL", "numpy", "gradio", "diffusers", "yaml"]))
from bench.card.__main__ import main
"""
"""Code that imports the command. It hides packages, as on a computer that has only torch and psutil."""

SIMULATED = """
sys.path.append("tests")
import torch
from card.simulated import SimulatedCard
# a tensor of the simulated GPU cannot change its type in place, as Module.to does by default
torch.__future__.set_overwrite_module_params_on_conversion(True)
with SimulatedCard(memory=256 << 20): """
"""Code that makes the following call of the command use a simulated GPU with 256 MB of memory."""


def measured(tmp_path: Path, code: str) -> tuple[dict[str, list[str]], str]:
    """Measures small networks in another process. `code` precedes the call of the command.

    Returns the cells of each row by the name of the row, and the row for docs/cards.md. Fails if a measurement failed.
    """
    file = tmp_path / "report.md"
    command = f"{RUN}{code}sys.exit(main(['--tiny', '--minutes', '60', '--out', {str(file)!r}]))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    text = file.read_text(encoding="utf-8")
    assert text in done.stdout
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    rows = {name.strip(): [cell.strip() for cell in cells] for name, *cells in lines[2:-1]}
    assert {len(cells) for cells in rows.values()} == {len(HEAD) - 1}
    failures = [name for name, cells in rows.items() if re.match("failed|out of memory|left out", cells[-1])]
    assert failures == []
    return rows, text.splitlines()[-1]


def number(text: str, before: str = "") -> float:
    """Returns the first number in a text, or the first number after the text `before`."""
    found = re.search(rf"{before}\s*([\d.]+)", text)
    assert found, text
    return float(found[1])


@pytest.mark.parametrize(
    ("make", "weights"),
    [
        (lambda: UNet(TRUE.unets["SDXL"][0]), 2_567_463_684),
        (lambda: UNet(TRUE.unets["SD 1.5"][0]), 859_520_964),
        (lambda: Autoencoder(TRUE.autoencoder), 83_653_863),
    ],
    ids=["SDXL", "SD 1.5", "VAE"],
)
def test_the_networks_have_as_many_weights_as_the_real_ones(make: object, weights: int) -> None:
    with torch.device("meta"):
        assert sum(weight.numel() for weight in make().parameters()) == weights


@pytest.mark.parametrize("name", TRUE.unets)
def test_the_unets_return_noise_in_the_shape_of_x(name: str) -> None:
    config, native, _ = TRUE.unets[name]
    with torch.device("meta"):
        x = torch.empty(2, 4, *native)
        vector = torch.empty(2, config.adm_in_channels) if config.adm_in_channels else None
        noise = UNet(config)(x, torch.full((2,), 500.0), torch.empty(2, 77, config.context_dim), vector)
    assert noise.shape == x.shape


@pytest.mark.slow
def test_every_measurement_runs_with_small_networks_on_the_cpu(tmp_path: Path) -> None:
    rows, _ = measured(tmp_path, "")
    # the rows of the small networks have the names SDXL and SD 1.5 too
    for views in (1, 2, 4, 8, 16):
        for model in ("SDXL", "SD 1.5"):
            assert number(rows[f"{model}: model call, {views} view{'s' * (views > 1)}"][0]) > 0
    stages = {name: cells for name, cells in rows.items() if name.endswith("one model call")}
    # four presets, at 2x and 4x with SDXL and at 2x with SD 1.5
    assert len(stages) == 12
    # a wait is a moment in which the CPU waits for the GPU; torch counts waits only with CUDA
    assert all("overhead" in remarks and "waits not counted" in remarks for _, _, remarks in stages.values())
    # at 4x, a call of Paper has 49 tiles and 16 dilated views
    assert "65 views, view batch chosen / fastest 1 /" in stages["SDXL: Paper 4x, one model call"][-1]
    for side in (64, 128, 256):
        for name in ("decode", "encode"):
            assert rows[f"VAE: {name} {side}x{side}"][-1] == "in one piece"
        assert rows[f"VAE: decode {side}x{side} in parts"][-1].startswith("in tiles of")
    # an image with twice the side needs four times as much memory
    assert rows["VAE: decode 128x128"][1] == "8.0 MB"
    assert rows["VAE: decode 256x256"][1] == "32.0 MB"


@pytest.mark.slow
def test_every_measurement_runs_with_small_networks_on_a_simulated_gpu(tmp_path: Path) -> None:
    rows, short = measured(tmp_path, SIMULATED)
    stages = [cells[-1] for name, cells in rows.items() if re.match(r"(SDXL|SD 1.5): .* one model call", name)]
    assert {number(remarks, "waits") for remarks in stages} == {1}
    assert all("view batch chosen / fastest 16 /" in remarks for remarks in stages)
    # the weights leave less free memory than the 4 MB that decoding in one piece needs
    assert "decode 128 in tiles of" in rows["A card of 8.0 MB with SDXL: Balanced 2x, one model call"][-1]
    assert rows["A card of 12.0 MB with SDXL: Balanced 2x, one model call"][-1].endswith("decode 128 in one piece")
    # in dB: the power of the UNet's prediction divided by the power of its error in half precision
    assert all(30 < number(rows[f"{model}: half precision"][-1]) < 80 for model in ("SDXL", "SD 1.5"))
    assert rows["VAE: single precision, in one piece"][-1] == "the same"
    half = number(rows["VAE: half precision, in one piece"][-1])
    computer = "the computer's memory"
    # the least accuracy in dB for each place of the feature maps; packed maps have only 16 bits per value
    decibels = {"the GPU's memory": 100, computer: 100, f"{computer}, packed": 70, "a file, packed": 70}
    for place, least in decibels.items():
        assert number(rows[f"VAE: single precision, in tiles, feature maps in {place}"][-1]) > least
        assert number(rows[f"VAE: half precision, in tiles, feature maps in {place}"][-1]) > half - 1
    page = (ROOT / "docs" / "cards.md").read_text(encoding="utf-8")
    assert f"\n|{'---|' * (short.count('|') - 1)}\n" in page
    assert "| - |" not in short


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """Returns an empty report with a time limit of one minute."""
    return Report("title", ["a", "c"], tmp_path / "report.md", 60, lambda: None)


def test_after_a_failed_measurement_the_next_one_runs(report: Report, tmp_path: Path) -> None:
    def fails(error: Exception) -> Cells:
        raise error

    report.attempt("a", lambda: fails(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried 2 GiB")))
    report.attempt("b", lambda: fails(ValueError("one | two\nthree")))
    assert "| b |  |  | failed: one / two |" in (tmp_path / "report.md").read_text(encoding="utf-8")
    report.attempt("c", lambda: ("1.0", "2 GB", ""))
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| a |  |  | out of memory: CUDA out of memory. Tried 2 GiB |" in text
    assert "| c | 1.0 | 2 GB |  |" in text
    assert text.endswith("| title | out of memory: CUDA out of memory. Tried 2 GiB | 1.0, 2 GB |\n")


def test_a_measurement_that_needs_over_half_of_the_remaining_time_is_left_out(report: Report) -> None:
    report.attempt("a", lambda: pytest.fail("the action ran"), estimate=31)
    report.attempt("c", lambda: ("1.0", "", ""), estimate=29)
    assert "| a |  |  | left out: needs about 31 s; use a larger --minutes |" in report.text()
    assert "| c | 1.0 |  |  |" in report.text()


def test_without_a_gpu_the_command_names_the_option_for_a_cpu() -> None:
    command = [sys.executable, "-m", "bench.card"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("torch can use a GPU here")
    assert done.returncode == 2
    assert "torch finds no GPU. Use --tiny" in done.stderr
