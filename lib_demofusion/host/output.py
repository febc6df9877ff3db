"""Decoding, and the pictures of the stages."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from modules import images, processing, shared
from PIL import Image
from torch import Tensor

from lib_demofusion.host import options, timing, vae
from lib_demofusion.plan import CELL, Plan
from lib_demofusion.spec import SettingsError

logger = logging.getLogger("DemoFusion")


@dataclass(frozen=True)
class StagePicture:
    """A picture of a stage before the last, with the text that belongs to it."""

    image: Image.Image
    infotext: str


def decode(p: Any, latent: Tensor) -> Any:
    """Returns the pictures of a latent (B, C, H, W) as the host's DecodedSamples, on the CPU.

    Raises what the host raises: out of memory, or NaN after its own retry in higher precision.
    """
    if shared.opts.sd_vae_decode_method != "Full":
        p.extra_generation_params["VAE Decoder"] = shared.opts.sd_vae_decode_method
    with timing.decoding(p, latent):
        return vae.decode(p, latent, options.value(options.DECODE, vae.AUTOMATIC))


def stage_pictures(p: Any, latent: Tensor, number: int, total: int, save: bool) -> list[StagePicture]:
    """Returns the pictures of stage `number` of `total` (the base is 1), and saves them by the host's rules."""
    height, width = latent.shape[-2] * CELL, latent.shape[-1] * CELL
    own = {"DemoFusion stage": f"{number} of {total}", "DemoFusion size": f"{width} x {height}"}
    pictures = []
    for index, sample in enumerate(decode(p, latent)):
        image = to_image(sample)
        with _extra_params(p, own):
            text = processing.create_infotext(
                p, p.prompts, p.seeds, p.subseeds, index=index, all_negative_prompts=p.negative_prompts
            )
            if shared.opts.enable_pnginfo:
                image.info["parameters"] = text
            if save and p.save_samples():
                _save(p, image, index, text, f"-demofusion-{width}x{height}")
        pictures.append(StagePicture(image, text))
    return pictures


def to_image(sample: Tensor) -> Image.Image:
    """Returns the picture of a decoded sample (3, H, W) in [-1, 1], rounded down as the host does."""
    pixels = (sample.float() * 0.5 + 0.5).clamp(0, 1).mul(255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def _save(p: Any, image: Image.Image, index: int, text: str, suffix: str) -> None:
    images.save_image(
        image,
        p.outpath_samples,
        "",
        p.seeds[index],
        p.prompts[index],
        shared.opts.samples_format,
        info=text,
        p=p,
        suffix=suffix,
    )


WEBP_PIXELS = 16383
"""The longest side of a WebP picture."""


def check_format(p: Any, plan: Plan) -> None:
    """Raises SettingsError where the API could not hand over the result: the host fails when all is done.

    A picture that is saved becomes a PNG then (modules/images.py, save_image), one of the API does not.
    """
    height, width = plan.pixels
    if p.is_api and shared.opts.samples_format.lower() == "webp" and max(height, width) > WEBP_PIXELS:
        name, pixels = ("width", width) if width > WEBP_PIXELS else ("height", height)
        raise SettingsError(
            name, pixels, f"up to {WEBP_PIXELS} while the webui's format is WebP; PNG has no such limit"
        )


SHOWN_PIXELS = 100_000_000
"""What a browser still shows without trouble."""


def shrink_for_gallery(processed: Any) -> None:
    """Replaces pictures that browsers fail at by smaller copies, provided that nothing is lost by it.

    A picture must be saved whole; grids, which come first, only repeat the pictures.
    """
    for index, picture in enumerate(processed.images):
        path = getattr(picture, "already_saved_as", None)
        pixels = picture.width * picture.height
        if pixels <= SHOWN_PIXELS or (path is None and index >= processed.index_of_first_image):
            continue
        try:
            copy = picture.reduce(math.ceil(math.sqrt(pixels / SHOWN_PIXELS)))
        except MemoryError:
            # the whole picture is there still, and its file
            logger.warning("no memory for a smaller copy of %s", path or "the grid")
            continue
        copy.info.update(picture.info)
        processed.images[index] = copy
        whole, shown = (f"{image.width}x{image.height}" for image in (picture, copy))
        saved = f"; the whole picture, {whole}, is saved as {path}" if path else f" of a grid of {whole}"
        processed.comments += f"DemoFusion: the gallery shows {shown}{saved}\n"


@contextmanager
def _extra_params(p: Any, own: dict[str, str]) -> Iterator[None]:
    before = p.extra_generation_params
    p.extra_generation_params = {**before, **own}
    try:
        yield
    finally:
        p.extra_generation_params = before
