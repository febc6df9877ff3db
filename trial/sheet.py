"""Draws contact sheets. A column has the images of one method, and below each image a part of it at 1:1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

SIDE, MARGIN, LABEL = 160, 8, 34
"""Sizes in pixels: the side of a whole image, the gap around each column, and the height of a title."""
LARGEST_PART = 2 / 3
"""Maximum width and height of a 1:1 part, as shares of the image's width and height."""
PAPER, INK, FAINT = "white", "black", "#666666"


def contact_sheet(
    columns: Sequence[tuple[str, str, Sequence[Path]]], captions: Sequence[str], side: int = SIDE, part: int = 0
) -> Image.Image:
    """Draws a sheet. Each column is (title, second line of the title, one file for each caption).

    Each caption stands above a row of images. `side` is the side in pixels of the whole images, which are resized to
    squares. `part` is the maximum side of the 1:1 parts, or 0 for the same as `side`.
    """
    part = part or side
    step, block = max(side, part) + MARGIN, side + part + LABEL
    page = Image.new("RGB", (MARGIN + len(columns) * step, LABEL + len(captions) * block + MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    for row, text in enumerate(captions):
        draw.text((MARGIN, LABEL + row * block + 2), text, fill=INK, font=font(12))
    for number, (title, second, files) in enumerate(columns):
        x = MARGIN + number * step
        draw.text((x, 4), title, fill=INK, font=font(13))
        draw.text((x, 19), second, fill=FAINT, font=font(10))
        for row, file in enumerate(files):
            y = LABEL + row * block + LABEL // 2
            with Image.open(file) as picture:
                page.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (x, y))
                page.paste(middle(picture, part), (x, y + side + 2))
    return page


def middle(picture: Image.Image, side: int = SIDE) -> Image.Image:
    """Crops at most `side` x `side` pixels that begin at a quarter of the width, where most subjects have an edge."""
    width, height = (min(side, int(length * LARGEST_PART)) for length in picture.size)
    left, top = picture.width // 4, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def font(size: int) -> Any:
    """Returns Pillow's default font. With a Pillow older than 10.1, as in some webuis, `size` has no effect."""
    try:
        return ImageFont.load_default(size)
    except TypeError:
        return ImageFont.load_default()
