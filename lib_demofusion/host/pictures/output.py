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

from lib_demofusion.host import options
from lib_demofusion.host.pictures import vae
from lib_demofusion.host.progress import timing
from lib_demofusion.method.plan import Plan
from lib_demofusion.settings.spec import SettingsError

logger = logging.getLogger("DemoFusion")


@dataclass(frozen=True)
class StagePicture:
    """A picture of a stage before the last, with the text that belongs to it."""

    image: Image.Image
    infotext: str


def decode(p: Any, latent: Tensor, report: vae.Report | None = None) -> Any:
    """Returns the pictures of a latent (B, C, H, W) as the host's DecodedSamples, on the CPU.

    Raises what the host raises, out of memory, or NaN after its own retry in higher precision, and what `report` does.
    """
    if shared.opts.sd_vae_decode_method != "Full":
        p.extra_generation_params["VAE Decoder"] = shared.opts.sd_vae_decode_method
    with timing.decoding(p, latent):
        return vae.decode(p, latent, options.value(options.DECODE, vae.AUTOMATIC), report)


def stage_pictures(p: Any, samples: Any, number: int, total: int, save: bool) -> list[StagePicture]:
    """Returns the pictures of stage `number` of `total` (the base is 1), and saves them by the host's rules.

    `samples` are what `decode` returned.
    """
    height, width = samples[0].shape[-2:]
    own = {"DemoFusion stage": f"{number} of {total}", "DemoFusion size": f"{width} x {height}"}
    pictures = []
    for index, sample in enumerate(samples):
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


LONGEST_SIDE = {"webp": 16383, "jpg": 65500, "jpeg": 65500}
"""What the encoders hold, in pixels."""

SAVED_AS_PNG = {"webp": 16383, "jpg": 65535, "jpeg": 65535}
"""Longer sides the webui saves as PNG (modules/images.py, save_image); the API has no such way out."""


def check_format(p: Any, plan: Plan) -> None:
    """Raises SettingsError where the result could not be written in the webui's format: it fails when all is done."""
    height, width = plan.pixels
    limit = _broken_limit(p, shared.opts.samples_format, max(height, width))
    if limit:
        name, pixels = ("width", width) if width > limit else ("height", height)
        shown = "WebP" if limit == LONGEST_SIDE["webp"] else "JPEG"
        raise SettingsError(name, pixels, f"up to {limit} while the webui's format is {shown}; PNG has no such limit")


def grid_problem(p: Any, size: tuple[int, int]) -> str | None:
    """Returns why the host should make no grid of pictures of `size` (width, height), or None.

    It makes the grid when all pictures are there, and hands over none of them where there is no memory for it or no
    way to write it. Its own limit acts on X/Y/Z plots only, and on the size of the request.
    """
    opts = shared.opts
    count = p.batch_size * p.n_iter
    if getattr(p, "mask_for_overlay", None) is not None:
        count *= 1 + bool(opts.return_mask) + bool(opts.return_mask_composite)
    alone = count < 2 and opts.grid_only_if_multiple
    if p.do_not_save_grid or alone or not (opts.grid_save or opts.return_grid):
        return None
    # the host's own counting of rows and columns
    layout = images.image_grid([Image.new("RGB", (1, 1))] * count, p.batch_size).size
    width, height = (n * side for n, side in zip(layout, size))
    limit = opts.img_max_size_mp
    if width * height > limit * 1e6:
        return f'no grid was made, {width}x{height} pixels are more than {limit:g} megapixels ("Maximum image size")'
    formats = [opts.grid_format] * bool(opts.grid_save) + [opts.samples_format] * bool(opts.return_grid and p.is_api)
    if not any(_broken_limit(p, name, max(width, height)) for name in formats):
        return None
    return f"no grid was made, its {width}x{height} pixels are more than its format holds"


def _broken_limit(p: Any, name: str, side: int) -> int:
    """Returns the longest side that a format holds where the host would fail to write this longer one, or 0."""
    limit = LONGEST_SIDE.get(name.lower(), side)
    return limit if side > limit and (p.is_api or side <= SAVED_AS_PNG[name.lower()]) else 0


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
        saved = f"; the whole image, {whole}, is saved as {path}" if path else f" of a grid of {whole}"
        processed.comments += f"DemoFusion: the gallery shows {shown}{saved}\n"


@contextmanager
def _extra_params(p: Any, own: dict[str, str]) -> Iterator[None]:
    before = p.extra_generation_params
    p.extra_generation_params = {**before, **own}
    try:
        yield
    finally:
        p.extra_generation_params = before
