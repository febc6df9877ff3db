"""What DemoFusion does to real pictures, measured on the trained model through the stand-in."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_process import Webui
from PIL import Image

from trial.detect import count_subjects
from trial.sampling import GUIDANCE
from trial.scenes import all_labels, caption
from trial.small_model import CHECKPOINT, why_missing

MISSING = why_missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

NATIVE = 128
PICTURES = {2: 12, 4: 3}
FIGURES = Path(__file__).resolve().parents[2] / "test-output" / "figures.json"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Webui:
    """The stand-in on the bundled model."""
    from trial import small_model

    return Webui(tmp_path_factory.mktemp("trained"), small_model.load(CHECKPOINT))


def prompts(count: int) -> Iterator[tuple[int, str]]:
    """Seeds and captions, spread over shapes and colours."""
    labels = all_labels()
    for seed in range(count):
        yield seed, caption(*labels[(seed * 23) % len(labels)])


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Peak signal to noise ratio in dB."""
    error = np.mean((np.asarray(one, float) - np.asarray(other, float)) ** 2)
    return 10 * math.log10(255**2 / max(error, 1e-9))


def fine_energy(image: Image.Image) -> float:
    """Energy of the spectrum above half of the highest frequency."""
    grey = np.asarray(image.convert("L"), float)
    spectrum = np.abs(np.fft.fftshift(np.fft.fft2(grey - grey.mean()))) ** 2
    y, x = np.meshgrid(*(np.linspace(-1, 1, n, endpoint=False) for n in grey.shape), indexing="ij")
    return float(spectrum[np.hypot(x, y) > 0.5].sum() / grey.size**2)


def measure(webui: Webui, scale: int, seed: int, prompt: str) -> dict[str, Any]:
    """Figures of one prompt."""
    job = {
        "prompt": prompt,
        "negative_prompt": "",
        "seed": seed,
        "steps": 20,
        "sampler_name": "DPM++ 2M",
        "cfg_scale": GUIDANCE,
    }
    large = NATIVE * scale
    demofusion = {"enabled": True, "scale": scale, "return_stages": True, "view_batch": 8}
    made = webui.job(demofusion, width=NATIVE, height=NATIVE, **job)
    final, base = made.images[0], made.images[1]
    direct = webui.job(width=large, height=large, **job).images[0]
    bicubic = base.resize(final.size, Image.Resampling.BICUBIC)
    return {
        "subjects in the base": count_subjects(np.asarray(base)),
        "subjects directly": count_subjects(np.asarray(direct)),
        "subjects with DemoFusion": count_subjects(np.asarray(final)),
        "PSNR to the base": psnr(final.resize(base.size, Image.Resampling.BOX), base),
        "fine detail against bicubic": fine_energy(final) / fine_energy(bicubic),
    }


@pytest.fixture(scope="module", params=list(PICTURES), ids=lambda scale: f"{scale}x")
def figures(request: pytest.FixtureRequest, trained: Webui) -> dict[str, list[float]]:
    """Lists of figures over the prompts whose base shows one subject; kept in test-output."""
    scale = request.param
    rows = [measure(trained, scale, seed, prompt) for seed, prompt in prompts(PICTURES[scale])]
    rows = [row for row in rows if row["subjects in the base"] == 1]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    FIGURES.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.is_file() else {}
    FIGURES.write_text(json.dumps({**known, f"{scale}x": columns}, indent=1), encoding="utf-8")
    return columns


def share_of_several(counts: list[float]) -> float:
    """The share of pictures with more than one subject."""
    return sum(count > 1 for count in counts) / len(counts)


def test_one_subject_stays_one_where_sampling_directly_shows_several(figures: dict[str, list[float]]) -> None:
    # measured: 7 of 12 at 2x and 3 of 3 at 4x, against none
    assert share_of_several(figures["subjects directly"]) >= 0.4
    assert share_of_several(figures["subjects with DemoFusion"]) <= 0.1


def test_the_structure_is_that_of_the_base(figures: dict[str, list[float]]) -> None:
    # measured: 23.8 dB at 2x, 25.8 dB at 4x; lowest of all 22.2 dB
    assert np.median(figures["PSNR to the base"]) > 22


def test_there_is_more_detail_than_in_a_bicubic_picture(figures: dict[str, list[float]]) -> None:
    # measured: 1.77 at 2x and at 4x
    assert np.median(figures["fine detail against bicubic"]) > 1.2
