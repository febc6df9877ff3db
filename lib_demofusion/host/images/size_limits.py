"""Checks the size limits of the webui's image formats, and shrinks images that are too large for a browser."""

from __future__ import annotations

import logging
import math
from typing import Any

from modules import images, shared
from PIL import Image

from lib_demofusion.method.plan import Plan
from lib_demofusion.settings.errors import SettingsError

LONGEST_SIDE = {"webp": 16383, "jpg": 65500, "jpeg": 65500}
"""The longest side in pixels that the encoders accept."""

SAVED_AS_PNG = {"webp": 16383, "jpg": 65535, "jpeg": 65535}
"""The webui saves images with longer sides as PNG (modules/images.py, save_image). The API does not."""


def check_format(p: Any, plan: Plan) -> None:
    """Raises SettingsError if the webui's format cannot store the result. Otherwise saving would fail after the run."""
    height, width = plan.pixels
    limit = _broken_limit(p, shared.opts.samples_format, max(height, width))
    if limit:
        name, pixels = ("width", width) if width > limit else ("height", height)
        shown = "WebP" if limit == LONGEST_SIDE["webp"] else "JPEG"
        raise SettingsError(name, pixels, f"at most {limit}, the limit of the image format {shown}, or the format PNG")


def grid_problem(p: Any, size: tuple[int, int]) -> str | None:
    """Returns the reason why the host should not make a grid of images of `size` (width, height), or None.

    The host makes the grid after all images. If the grid does not fit into memory or cannot be saved, the host returns
    no images at all. Its own limit applies only to X/Y/Z plots and uses the size in the request.
    """
    opts = shared.opts
    count = p.batch_size * p.n_iter
    if getattr(p, "mask_for_overlay", None) is not None:
        count *= 1 + bool(opts.return_mask) + bool(opts.return_mask_composite)
    alone = count < 2 and opts.grid_only_if_multiple
    if p.do_not_save_grid or alone or not (opts.grid_save or opts.return_grid):
        return None
    # the host's own function computes rows and columns
    layout = images.image_grid([Image.new("RGB", (1, 1))] * count, p.batch_size).size
    width, height = (n * side for n, side in zip(layout, size))
    limit = opts.img_max_size_mp
    if width * height > limit * 1e6:
        pixels = f"{width}x{height} pixels"
        return f'no grid was made, because its {pixels} are more than {limit:g} megapixels ("Maximum image size")'
    formats = [opts.grid_format] * bool(opts.grid_save) + [opts.samples_format] * bool(opts.return_grid and p.is_api)
    if not any(_broken_limit(p, name, max(width, height)) for name in formats):
        return None
    return f"no grid was made, because its {width}x{height} pixels are more than the image format supports"


def _broken_limit(p: Any, name: str, side: int) -> int:
    """Returns the format's limit if the host would fail to save an image with this longer `side`, else 0."""
    limit = LONGEST_SIDE.get(name.lower(), side)
    return limit if side > limit and (p.is_api or side <= SAVED_AS_PNG[name.lower()]) else 0


logger = logging.getLogger("DemoFusion")

SHOWN_PIXELS = 100_000_000
"""The number of pixels that browsers show without problems."""


def shrink_for_gallery(processed: Any) -> None:
    """Replaces images that are too large for browsers with smaller copies, unless an image would be lost.

    An image is replaced only if its file is saved at full size. Grids are always replaced, because they only contain
    images that exist separately.
    """
    for index, picture in enumerate(processed.images):
        path = getattr(picture, "already_saved_as", None)
        pixels = picture.width * picture.height
        if pixels <= SHOWN_PIXELS or (path is None and index >= processed.index_of_first_image):
            continue
        try:
            copy = picture.reduce(math.ceil(math.sqrt(pixels / SHOWN_PIXELS)))
        except MemoryError:
            # the image at full size remains in the list
            logger.warning("not enough memory for a smaller copy of %s", path or "the grid")
            continue
        copy.info.update(picture.info)
        processed.images[index] = copy
        whole, shown = (f"{image.width}x{image.height}" for image in (picture, copy))
        saved = f"; the whole image, {whole}, is saved as {path}" if path else f" of a grid of {whole}"
        processed.comments += f"DemoFusion: the gallery shows {shown}{saved}\n"
