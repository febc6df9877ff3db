"""Shrinks images in the gallery that are too large for a browser."""

from __future__ import annotations

import logging
import math
from typing import Any

logger = logging.getLogger("DemoFusion")

SHOWN_PIXELS = 100_000_000
"""The number of pixels that browsers show without problems."""


def shrink_for_gallery(processed: Any) -> None:
    """Replaces images that are too large for browsers with smaller copies, if no image is lost.

    An image is replaced only if its file is saved at full size. Grids, which come first, only repeat the images.
    """
    for index, picture in enumerate(processed.images):
        path = getattr(picture, "already_saved_as", None)
        pixels = picture.width * picture.height
        if pixels <= SHOWN_PIXELS or (path is None and index >= processed.index_of_first_image):
            continue
        try:
            copy = picture.reduce(math.ceil(math.sqrt(pixels / SHOWN_PIXELS)))
        except MemoryError:
            # the full image and its file are still there
            logger.warning("no memory for a smaller copy of %s", path or "the grid")
            continue
        copy.info.update(picture.info)
        processed.images[index] = copy
        whole, shown = (f"{image.width}x{image.height}" for image in (picture, copy))
        saved = f"; the whole image, {whole}, is saved as {path}" if path else f" of a grid of {whole}"
        processed.comments += f"DemoFusion: the gallery shows {shown}{saved}\n"
