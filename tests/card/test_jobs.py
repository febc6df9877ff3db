"""Whole jobs on a played card: no error, and the picture that the processor makes."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from card.host import HALF, HALF_BUT_VAE, SINGLE, UPCAST, CardWebui, Precision, psnr
from card.played import PlayedCard
from PIL import Image

LIKE = 58
"""Decibels that a picture made in half precision is like that in single precision; the plain base picture is at 60."""

LIKE_BY_HALF_VAE = {"Fast": 57}
"""What an autoencoder in half precision leaves, twice the base picture's error: Fast hardly paints over what decoding
and encoding the base picture did. With the autoencoder in single precision it is at 59.
"""

PRESETS = ("Paper", "Balanced", "Fast")
TABS = ("txt2img", "img2img")


@functools.cache
def upload() -> Image.Image:
    """A picture for img2img, smooth and with edges."""
    rows, columns = np.mgrid[:64, :64] / 63
    pixels = np.stack([rows, columns, (rows + columns > 1) * 0.7], 2)
    return Image.fromarray((pixels * 255).astype(np.uint8))


def tab(name: str) -> dict[str, Any]:
    """Parameters of a job of that tab."""
    return {"init_image": upload()} if name == "img2img" else {}


def picture(result: Any) -> Image.Image:
    """The picture of a job that had nothing to complain of."""
    assert result.comments == ""
    return result.images[0]


@functools.cache
def on_processor(webui: CardWebui, preset: str, scale: float, name: str) -> Image.Image:
    """The same job's picture on the processor, in single precision."""
    return picture(webui.job({"preset": preset, "scale": scale}, **tab(name)))


def likeness(
    webui: CardWebui, card: PlayedCard, precision: Precision, preset: str, scale: float = 2, name: str = "txt2img"
) -> float:
    """Decibels between a job's picture on the card and that on the processor."""
    made = webui.job({"preset": preset, "scale": scale}, card, precision, **tab(name))
    return psnr(picture(made), on_processor(webui, preset, scale, name))


@pytest.mark.parametrize("name", TABS)
@pytest.mark.parametrize("preset", PRESETS)
def test_single_precision_is_the_processors(webui: CardWebui, card: PlayedCard, preset: str, name: str) -> None:
    assert likeness(webui, card, SINGLE, preset, 2, name) > 90


@pytest.mark.parametrize("name", TABS)
@pytest.mark.parametrize("scale", [2, 1.625])
@pytest.mark.parametrize("preset", PRESETS)
def test_half_precision_and_autocast(webui: CardWebui, card: PlayedCard, preset: str, scale: float, name: str) -> None:
    assert likeness(webui, card, HALF, preset, scale, name) >= LIKE_BY_HALF_VAE.get(preset, LIKE)


@pytest.mark.parametrize("name", TABS)
@pytest.mark.parametrize(
    ("precision", "preset"),
    [(HALF_BUT_VAE, "Balanced"), (HALF_BUT_VAE, "Fast"), (UPCAST, "Balanced")],
    ids=["half but VAE", "half but VAE, Fast", "upcast"],
)
def test_other_precisions(webui: CardWebui, card: PlayedCard, precision: Precision, preset: str, name: str) -> None:
    assert likeness(webui, card, precision, preset, 2, name) >= LIKE


def test_a_batch_has_the_pictures_of_its_seeds(webui: CardWebui, card: PlayedCard) -> None:
    made = webui.job({"preset": "Balanced", "scale": 2}, card, HALF, batch_size=2)
    assert made.comments == ""
    assert psnr(made.images[0], on_processor(webui, "Balanced", 2, "txt2img")) >= LIKE


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M", "DPM++ SDE", "DDIM"])
def test_other_samplers(webui: CardWebui, card: PlayedCard, sampler: str) -> None:
    settings = {"preset": "Balanced", "scale": 2}
    plain = picture(webui.job(settings, sampler_name=sampler))
    assert psnr(picture(webui.job(settings, card, HALF, sampler_name=sampler)), plain) >= LIKE
