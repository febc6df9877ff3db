"""Creates and saves the base image and the images of all stages except the last one, each with its own infotext.

Also checks the size limits of the webui's image formats, and shrinks images that are too large for a browser.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from modules import images, processing, shared
from PIL import Image
from torch import Tensor

from lib_demofusion.host.common.messages import KEY_STOPPED
from lib_demofusion.method.plan import Plan
from lib_demofusion.settings.errors import SettingsError

logger = logging.getLogger("DemoFusion")

LONGEST_SIDE = {"webp": 16383, "jpg": 65500, "jpeg": 65500}
"""The longest side in pixels that the encoder of each image format accepts."""

SAVED_AS_PNG = {"webp": 16383, "jpg": 65535, "jpeg": 65535}
"""If a side has more pixels than this, the webui saves the image as PNG (modules/images.py, save_image).

Images in responses of the webui's API keep their format.
"""

SHOWN_PIXELS = 100_000_000
"""The largest number of pixels of an image that browsers show without problems."""


@dataclass(frozen=True)
class StageImage:
    """A base image, or an image of a stage before the last stage, with its infotext."""

    image: Image.Image
    infotext: str
    index: int
    """The image's index in the batch."""
    own: Mapping[str, str]
    """Infotext entries with the stage and the size of this image. They replace the entries of the final image."""


def stage_images(p: Any, samples: Any, number: int, total: int, save: bool) -> list[StageImage]:
    """Creates the images of stage `number` of `total`. Number 0 is the base image.

    `samples` is the result of `coding.decode`. If `save` is True, also saves the images, unless the webui saves no
    images of this job.
    """
    height, width = samples[0].shape[-2:]
    name = f"{number} of {total}" if number else "base image"
    own = {"DemoFusion stage": name, "DemoFusion size": f"{width} x {height}"}
    pictures = []
    for index, sample in enumerate(samples):
        image = to_image(sample)
        with _extra_params(p, own):
            text = _infotext(p, image, index)
            if save and p.save_samples():
                _save(p, image, index, text, f"-demofusion-{width}x{height}")
        pictures.append(StageImage(image, text, index, own))
    return pictures


def with_later_reports(p: Any, picture: StageImage) -> StageImage:
    """Returns the image with a new infotext, which has notes and errors that were reported after the image was created.

    A file that is already saved keeps its old infotext.
    """
    with _extra_params(p, picture.own):
        # an interruption affects only the final image
        p.extra_generation_params.pop(KEY_STOPPED, None)
        return replace(picture, infotext=_infotext(p, picture.image, picture.index))


def _infotext(p: Any, image: Image.Image, index: int) -> str:
    """Returns the infotext of image `index` of the batch.

    Also adds it to `image.info` if the webui's setting "Write infotext to metadata of the generated image" is on.
    """
    text = processing.create_infotext(
        p, p.prompts, p.seeds, p.subseeds, index=index, all_negative_prompts=p.negative_prompts
    )
    if shared.opts.enable_pnginfo:
        image.info["parameters"] = text
    return text


def to_image(sample: Tensor) -> Image.Image:
    """Converts a decoded sample (3, H, W) in -1..1 to an image. Rounds down like the webui."""
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


@contextmanager
def _extra_params(p: Any, own: Mapping[str, str]) -> Iterator[None]:
    before = p.extra_generation_params
    p.extra_generation_params = {**before, **own}
    try:
        yield
    finally:
        p.extra_generation_params = before


def check_format(p: Any, plan: Plan) -> None:
    """Raises SettingsError if an image of the final size cannot be saved in the format of the webui's settings."""
    height, width = plan.pixels
    limit = _exceeded_limit(p, shared.opts.samples_format, max(height, width))
    if limit:
        name, pixels = ("width", width) if width > limit else ("height", height)
        shown = "WebP" if limit == LONGEST_SIDE["webp"] else "JPEG"
        raise SettingsError(name, pixels, f"at most {limit}, the limit of the image format {shown}, or the format PNG")


def grid_problem(p: Any, size: tuple[int, int]) -> str | None:
    """Returns why a grid of images of `size` (width, height) is too large, or None.

    The webui makes the grid after all images. If the grid does not fit into memory or cannot be saved, the webui
    returns no images at all. The webui itself compares the grid with the setting "Maximum image size" only for X/Y/Z
    plots, and computes the grid from the requested image size, which is smaller than the final size.
    """
    opts = shared.opts
    count = p.batch_size * p.n_iter
    if getattr(p, "mask_for_overlay", None) is not None:
        count *= 1 + bool(opts.return_mask) + bool(opts.return_mask_composite)
    alone = count < 2 and opts.grid_only_if_multiple
    if p.do_not_save_grid or alone or not (opts.grid_save or opts.return_grid):
        return None
    # the webui's own function decides the numbers of rows and columns. With images of one pixel, the width of its
    # result is the number of columns, and the height is the number of rows
    layout = images.image_grid([Image.new("RGB", (1, 1))] * count, p.batch_size).size
    width, height = (n * side for n, side in zip(layout, size))
    limit = opts.img_max_size_mp
    if width * height > limit * 1e6:
        pixels = f"{width}x{height} pixels"
        return f'no grid was made, because its {pixels} are more than {limit:g} megapixels ("Maximum image size")'
    formats = [opts.grid_format] * bool(opts.grid_save) + [opts.samples_format] * bool(opts.return_grid and p.is_api)
    if not any(_exceeded_limit(p, name, max(width, height)) for name in formats):
        return None
    return f"no grid was made, because its {width}x{height} pixels are more than the image format supports"


def _exceeded_limit(p: Any, name: str, side: int) -> int:
    """Returns LONGEST_SIDE of the image format `name` if an image with a side of `side` pixels cannot be saved, else 0.

    Outside the API, an image with a side above SAVED_AS_PNG can be saved, because the webui saves it as PNG.
    """
    limit = LONGEST_SIDE.get(name.lower(), side)
    return limit if side > limit and (p.is_api or side <= SAVED_AS_PNG[name.lower()]) else 0


def shrink_for_gallery(processed: Any) -> None:
    """Replaces images that are too large for browsers with smaller copies.

    An image is replaced only if it is saved as a file at full size. Grids are replaced even if they are not saved,
    because they only contain images that exist separately.
    """
    for index, picture in enumerate(processed.images):
        path = getattr(picture, "already_saved_as", None)
        pixels = picture.width * picture.height
        if pixels <= SHOWN_PIXELS or (path is None and index >= processed.index_of_first_image):
            continue
        try:
            copy = picture.reduce(math.ceil(math.sqrt(pixels / SHOWN_PIXELS)))
        except MemoryError:
            # the image is not replaced
            logger.warning("not enough memory for a smaller copy of %s", path or "the grid")
            continue
        copy.info.update(picture.info)
        processed.images[index] = copy
        whole, shown = (f"{image.width}x{image.height}" for image in (picture, copy))
        saved = f"the whole image, {whole}, is saved as {path}" if path else f"the whole grid, {whole}, is not saved"
        processed.comments += f"DemoFusion: the gallery shows {shown}; {saved}\n"
