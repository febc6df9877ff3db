"""Tests whole jobs on a simulated card: there is no error, and the image equals that of the CPU."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from card.host import HALF, HALF_BUT_VAE, SINGLE, UPCAST, CardWebui, Precision, psnr
from card.simulated import SimulatedCard
from PIL import Image

LIKE = 58
"""Minimum PSNR in dB between an image in half precision and the same image in single precision.

The base image alone reaches 60 dB.
"""

LIKE_BY_HALF_VAE = {"Fast": 57}
"""Minimum PSNR in dB of some presets if the autoencoder runs in half precision.

Fast decodes and encodes the base image and then hardly changes it, so the errors of both remain. Its PSNR is 59 dB with
the autoencoder in single precision.
"""

LIKE_OF_UPLOAD = 57
"""Minimum PSNR in dB for img2img. Its base image is an upload that was encoded in half precision."""

TWICE_THE_ERROR = 3.01
"""Allowed loss in dB with "Keep colors", because the errors of two decoded images add up."""

PRESETS = ("Paper", "Balanced", "Fast")
TABS = ("txt2img", "img2img")


@functools.cache
def upload() -> Image.Image:
    """Returns an image for img2img that is smooth and has edges."""
    rows, columns = np.mgrid[:64, :64] / 63
    pixels = np.stack([rows, columns, (rows + columns > 1) * 0.7], 2)
    return Image.fromarray((pixels * 255).astype(np.uint8))


def tab(name: str) -> dict[str, Any]:
    """Returns the parameters that select the tab txt2img or img2img."""
    return {"init_image": upload()} if name == "img2img" else {}


def picture(result: Any) -> Image.Image:
    """Returns the image of a job. Fails if the job reported a message."""
    assert result.comments == ""
    return result.images[0]


@functools.cache
def on_processor(webui: CardWebui, preset: str, scale: float, name: str) -> Image.Image:
    """Returns the image of a job on the CPU in single precision."""
    return picture(webui.job({"preset": preset, "scale": scale}, **tab(name)))


def likeness(
    webui: CardWebui, card: SimulatedCard, precision: Precision, preset: str, scale: float = 2, name: str = "txt2img"
) -> float:
    """Returns the PSNR between the image of a job on the card and its image on the CPU, in dB."""
    made = webui.job({"preset": preset, "scale": scale}, card, precision, **tab(name))
    return psnr(picture(made), on_processor(webui, preset, scale, name))


def least_with_kept_colors(webui: CardWebui, card: SimulatedCard, precision: Precision, sampler: str) -> float:
    """Returns the minimum PSNR with "Keep colors". It is LIKE, or lower if the base image alone has a large error."""
    off = {"enabled": False}
    plain = psnr(
        picture(webui.job(off, card, precision, sampler_name=sampler)), picture(webui.job(off, sampler_name=sampler))
    )
    return min(LIKE, plain - TWICE_THE_ERROR)


@pytest.mark.parametrize("name", TABS)
@pytest.mark.parametrize("preset", PRESETS)
def test_single_precision_gives_the_image_of_the_cpu(
    webui: CardWebui, card: SimulatedCard, preset: str, name: str
) -> None:
    assert likeness(webui, card, SINGLE, preset, 2, name) > 90


@pytest.mark.parametrize("name", TABS)
@pytest.mark.parametrize("scale", [2, 1.625])
@pytest.mark.parametrize("preset", PRESETS)
def test_half_precision_and_autocast_give_nearly_the_same_image(
    webui: CardWebui, card: SimulatedCard, preset: str, scale: float, name: str
) -> None:
    least = LIKE_OF_UPLOAD if name == "img2img" else LIKE_BY_HALF_VAE.get(preset, LIKE)
    assert likeness(webui, card, HALF, preset, scale, name) >= least


@pytest.mark.parametrize("name", TABS)
@pytest.mark.parametrize(
    ("precision", "preset"),
    [(HALF_BUT_VAE, "Balanced"), (HALF_BUT_VAE, "Fast"), (UPCAST, "Balanced")],
    ids=["half but VAE", "half but VAE, Fast", "upcast"],
)
def test_other_precisions_give_nearly_the_same_image(
    webui: CardWebui, card: SimulatedCard, precision: Precision, preset: str, name: str
) -> None:
    assert likeness(webui, card, precision, preset, 2, name) >= LIKE


def test_images_of_a_batch_depend_only_on_their_seeds(webui: CardWebui, card: SimulatedCard) -> None:
    made = webui.job({"preset": "Balanced", "scale": 2}, card, HALF, batch_size=2)
    assert made.comments == ""
    assert psnr(made.images[0], on_processor(webui, "Balanced", 2, "txt2img")) >= LIKE


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M", "DPM++ SDE", "DDIM"])
def test_other_samplers_give_nearly_the_same_image(webui: CardWebui, card: SimulatedCard, sampler: str) -> None:
    settings = {"preset": "Balanced", "scale": 2}
    plain = picture(webui.job(settings, sampler_name=sampler))
    least = least_with_kept_colors(webui, card, HALF, sampler)
    assert psnr(picture(webui.job(settings, card, HALF, sampler_name=sampler)), plain) >= least
