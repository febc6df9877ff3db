"""What the page shows of images that are too large for a browser."""

from __future__ import annotations

import logging
import math
from typing import Any

logger = logging.getLogger("DemoFusion")

SHOWN_PIXELS = 100_000_000
"""What a browser still shows without trouble."""


def shrink_for_gallery(processed: Any) -> None:
    """Replaces images that browsers fail at by smaller copies, provided that nothing is lost by it.

    An image must be saved whole; grids, which come first, only repeat the images.
    """
    for index, picture in enumerate(processed.images):
        path = getattr(picture, "already_saved_as", None)
        pixels = picture.width * picture.height
        if pixels <= SHOWN_PIXELS or (path is None and index >= processed.index_of_first_image):
            continue
        try:
            copy = picture.reduce(math.ceil(math.sqrt(pixels / SHOWN_PIXELS)))
        except MemoryError:
            # the whole image is there still, and its file
            logger.warning("no memory for a smaller copy of %s", path or "the grid")
            continue
        copy.info.update(picture.info)
        processed.images[index] = copy
        whole, shown = (f"{image.width}x{image.height}" for image in (picture, copy))
        saved = f"; the whole image, {whole}, is saved as {path}" if path else f" of a grid of {whole}"
        processed.comments += f"DemoFusion: the gallery shows {shown}{saved}\n"
