"""Tests `python -m bench.card`: the networks have the true sizes, and the whole measurement runs with small ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.card import models
from bench.card.report import HEAD, Report, Row

ROOT = Path(__file__).resolve().parents[2]

WITHOUT = "import sys; sys.modules.update(dict.fromkeys(['PIL', 'numpy', 'gradio', 'diffusers', 'yaml']));"
"""Hides packages that a computer with only torch and psutil does not have."""
PLAYED = """
sys.path.append('tests')
from card.played import PlayedCard
with PlayedCard(memory=256 << 20): sys.exit(main(arguments))
"""


def measured(tmp_path: Path, code: str) -> tuple[dict[str, list[str]], str]:
    """Runs the command with small sizes. Returns the cells of each row by name, and the row for docs/cards.md."""
    file = tmp_path / "report.md"
    begin = f"from bench.card.__main__ import main; arguments = ['--tiny', '--minutes', '60', '--out', {str(file)!r}]"
    command = [sys.executable, "-c", f"{WITHOUT} {begin}\n{code}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert file.read_text(encoding="utf-8") in done.stdout
    assert "\x1b" not in done.stderr
    lines = [line.strip("|").split("|") for line in file.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    rows = {name.strip(): [cell.strip() for cell in cells] for name, *cells in lines[2:-1]}
    assert {len(cells) for cells in rows.values()} == {len(HEAD) - 1}
    return rows, file.read_text(encoding="utf-8").splitlines()[-1]


def went_well(cells: list[str]) -> bool:
    """Returns whether a row has a measurement."""
    return not cells[-1].startswith(("failed", "out of memory", "left out"))


@pytest.mark.parametrize(
    ("make", "weights"),
    [(models.SD15.make, 859_520_964), (models.SDXL.make, 2_567_463_684), (models.autoencoder, 83_653_863)],
    ids=["SD 1.5", "SDXL", "VAE"],
)
def test_the_networks_have_the_true_number_of_weights(make: object, weights: int) -> None:
    with torch.device("meta"):
        assert sum(weight.numel() for weight in make().parameters()) == weights


def test_the_unets_predict_at_their_native_sizes() -> None:
    with torch.device("meta"):
        for kind, text in ((models.SD15, 768), (models.SDXL, 2048)):
            vector = [torch.empty(2, kind.vector_dim)] * bool(kind.vector_dim)
            x = torch.empty(2, 4, *kind.native)
            assert kind.make()(x, torch.full((2,), 500.0), torch.empty(2, 77, text), *vector).shape == x.shape


@pytest.mark.slow
def test_small_models_on_the_processor(tmp_path: Path) -> None:
    rows, _ = measured(tmp_path, "sys.exit(main(arguments))")
    assert [name for name, cells in rows.items() if not went_well(cells)] == []
    assert len([name for name in rows if name.endswith("one model call")]) == 12
    assert rows["SDXL: Paper 4x, one model call"][-1].startswith("65 views, up to 1 at once")
    for name in ("half precision, in parts on the card", "single precision, in parts on the card"):
        assert float(rows[f"VAE: {name}"][-1].split()[0]) > 100


@pytest.mark.slow
def test_small_models_on_a_simulated_card(tmp_path: Path) -> None:
    rows, summary = measured(tmp_path, PLAYED)
    assert [name for name, cells in rows.items() if not went_well(cells)] == []
    calls = [cells for name, cells in rows.items() if re.match(r"(SDXL|SD 1.5): .* one model call", name)]
    assert {cells[-1].rpartition(", ")[2] for cells in calls} == {"waits for the card: 1"}
    assert "chosen: 16;" in rows["SDXL: automatic view batch"][-1]
    # the weights leave less than the 4 MB that the whole image needs
    assert "tiles of" in rows["A card of 8 MB with SDXL: Balanced 2x, one model call"][-1]
    assert rows["A card of 12 MB with SDXL: Balanced 2x, one model call"][-1].endswith("whole")
    assert 30 < float(rows["SDXL: prediction in half precision"][-1].split()[0]) < 80
    page = (ROOT / "docs" / "cards.md").read_text(encoding="utf-8")
    assert f"\n|{'---|' * (summary.count('|') - 1)}\n" in page


def report(tmp_path: Path, limit: float = 60) -> Report:
    """Returns an empty report."""
    return Report(["title"], tmp_path / "report.md", limit, lambda: None)


def test_a_failed_measurement_is_a_row_and_the_next_one_runs(tmp_path: Path) -> None:
    def fails(error: Exception) -> Row:
        raise error

    found = report(tmp_path)
    assert not found.attempt("a", lambda: fails(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried 2 GiB")))
    assert not found.attempt("b", lambda: fails(ValueError("one | two\nthree")))
    assert found.attempt("c", lambda: Row("1.0"))
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| a |  |  |  | out of memory: CUDA out of memory. Tried 2 GiB |" in text
    assert "| b |  |  |  | failed: one / two |" in text
    assert "| c | 1.0 |  |  |  |" in text


def test_measurements_that_take_too_long_are_skipped(tmp_path: Path) -> None:
    found = report(tmp_path)
    assert not found.attempt("a", lambda: Row("1.0"), estimate=40, share=0.5)
    assert found.attempt("b", lambda: Row("1.0"), estimate=20, share=0.5)
    assert "left out: about 40 s are needed; raise --minutes" in found.text()
