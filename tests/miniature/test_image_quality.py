"""Measures images that the stand-in for the webui (trial/webui) makes with DemoFusion and the small trained model.

The comments give the values that were measured. The limits are less strict, so that they only find a clear change.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_process import Webui
from PIL import Image

from bench.quality.worlds import COLLAGES
from trial.collage.detector import crops_with_subject, read
from trial.small_model import CHECKPOINT, GUIDANCE

pytestmark = pytest.mark.slow

NATIVE = 128
"""Width and height of the base images in pixels. The model was trained at this size."""
PICTURES = {2: 12, 4: 9}
"""The number of prompts for each scale."""
DIRECT = 3
"""Every third prompt is also sampled directly at the large size. For all prompts, this would take too long."""
FIGURES = Path(__file__).resolve().parents[2] / "test-output" / "figures.json"
"""The file to which the tests write all measurements."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Webui:
    """Returns the stand-in with the small trained model."""
    from trial import small_model

    return Webui(tmp_path_factory.mktemp("trained"), small_model.load(CHECKPOINT))


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Computes the peak signal-to-noise ratio of two images of equal size, in dB."""
    error = np.mean((np.asarray(one, float) - np.asarray(other, float)) ** 2)
    return 10 * math.log10(255**2 / max(error, 1e-9))


def fine_energy(image: Image.Image) -> float:
    """Computes the variance of the gray values that comes from frequencies above half of the Nyquist frequency."""
    grey = np.asarray(image.convert("L"), float)
    spectrum = np.abs(np.fft.fftshift(np.fft.fft2(grey - grey.mean()))) ** 2
    y, x = np.meshgrid(*(np.linspace(-1, 1, n, endpoint=False) for n in grey.shape), indexing="ij")
    return float(spectrum[np.hypot(x, y) > 0.5].sum() / grey.size**2)


def job(number: int) -> dict[str, Any]:
    """Returns the parameters of a job with the prompt of this number. The size is not included."""
    words = {"prompt": COLLAGES.prompt(number), "seed": number, "sampler_name": "DPM++ 2M"}
    return {**words, "steps": 12, "cfg_scale": GUIDANCE}


def measure(webui: Webui, scale: int, number: int) -> dict[str, Any]:
    """Makes an image with DemoFusion and returns its measurements. `number` selects prompt and seed."""
    demofusion = {"enabled": True, "scale": scale, "return_stages": True, "view_batch": 8}
    made = webui.job(demofusion, width=NATIVE, height=NATIVE, **job(number))
    subject = COLLAGES.label(number)[0]
    final, base = made.images[0], made.images[1]
    bicubic = base.resize(final.size, Image.Resampling.BICUBIC)
    seen = {name: read([np.asarray(image)])[0] for name, image in (("base", base), ("ours", final))}
    return {
        "base shows the subject": [found.subject for found in seen["base"].subjects] == [subject],
        "subjects with DemoFusion": len(seen["ours"].subjects),
        "subject still right": [found.subject for found in seen["ours"].subjects][:1] == [subject],
        "crops with a subject": crops_with_subject(np.asarray(final)),
        "PSNR to the base": psnr(final.resize(base.size, Image.Resampling.BOX), base),
        "fine detail against bicubic": fine_energy(final) / fine_energy(bicubic),
    }


def measure_direct(webui: Webui, scale: int, number: int) -> dict[str, Any]:
    """Samples an image directly at the large size and returns its measurements. `number` selects prompt and seed."""
    direct = webui.job(width=NATIVE * scale, height=NATIVE * scale, **job(number)).images[0]
    return {
        "subjects directly": len(read([np.asarray(direct)])[0].subjects),
        "crops with a subject directly": crops_with_subject(np.asarray(direct)),
    }


@pytest.fixture(scope="module", params=list(PICTURES), ids=lambda scale: f"{scale}x")
def figures(request: pytest.FixtureRequest, trained: Webui) -> dict[str, list[float]]:
    """Returns the measurements of all images at one scale. Also writes the measurements to the file FIGURES.

    An image by DemoFusion is included only if its base image shows the subject of the prompt once and no other subject.
    """
    scale = request.param
    count = PICTURES[scale]
    rows = [measure(trained, scale, number) for number in range(count)]
    rows = [row for row in rows if row["base shows the subject"]]
    columns = {name: [float(row[name]) for row in rows] for name in rows[0]}
    direct = [measure_direct(trained, scale, number) for number in range(0, count, DIRECT)]
    columns |= {name: [float(row[name]) for row in direct] for name in direct[0]}
    FIGURES.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.is_file() else {}
    FIGURES.write_text(json.dumps({**known, f"{scale}x": columns}, indent=1), encoding="utf-8")
    return columns


def mean(values: list[float]) -> float:
    """Computes the mean. The mean of zeros and ones is the share of ones."""
    return sum(values) / len(values)


def test_subjects_are_repeated_less_often_than_with_direct_sampling(figures: dict[str, list[float]]) -> None:
    # measured subjects per image: 1.8 at 2x and 4.0 at 4x with direct sampling, 1.0 and 0.9 with DemoFusion
    assert mean(figures["subjects directly"]) >= 1.2
    assert mean(figures["subjects with DemoFusion"]) <= 1.4
    assert mean(figures["subjects with DemoFusion"]) < mean(figures["subjects directly"]) - 0.2
    # a crop has the native size and is too small for a correct subject, so a whole subject in a crop is an extra one.
    # Measured shares of crops with a subject: 0.36 at 2x and 0.27 at 4x with direct sampling, 0.07 and 0.06 with
    # DemoFusion
    assert mean(figures["crops with a subject"]) <= 0.75 * mean(figures["crops with a subject directly"])


def test_the_image_shows_the_subject_of_the_prompt(figures: dict[str, list[float]]) -> None:
    # measured: 10 of 10 images at 2x, 6 of 7 at 4x; a random one of the 24 subjects would give a share of 0.04
    assert mean(figures["subject still right"]) >= 0.75


def test_the_structure_of_the_base_image_is_kept(figures: dict[str, list[float]]) -> None:
    # measured medians: 26.2 dB at 2x, 30.0 dB at 4x; the lowest value of a single image is 25.1 dB
    assert np.median(figures["PSNR to the base"]) > 18


def test_there_is_more_detail_than_after_bicubic_upscaling(figures: dict[str, list[float]]) -> None:
    # the ratio of the fine detail of both images; measured medians: 6.1 at 2x, 19 at 4x
    assert np.median(figures["fine detail against bicubic"]) > 4
