"""What the webui's image formats cannot hold: said before a run, or of a grid before it costs the images."""

from __future__ import annotations

from typing import Any

from modules import images, shared
from PIL import Image

from lib_demofusion.method.plan import Plan
from lib_demofusion.settings.spec import SettingsError

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
    """Returns why the host should make no grid of images of `size` (width, height), or None.

    It makes the grid when all images are there, and hands over none of them where there is no memory for it or no
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
