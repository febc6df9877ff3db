"""Draws contact sheets: a column for each configuration, with whole images and a part of each at 1:1 below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

SIDE, MARGIN, LABEL = 160, 8, 34
"""Pixels of an image's side, of the gap between images, and of the text above them."""
LARGEST_PART = 2 / 3
"""Largest side of a part, as a share of the image."""
PAPER, INK, FAINT = "white", "black", "#666666"


def contact_sheet(
    columns: Sequence[tuple[str, str, Sequence[Path]]], captions: Sequence[str], side: int = SIDE, part: int = 0
) -> Image.Image:
    """Draws a page of columns (title, second line, one file for each caption).

    Whole images have `side` pixels and parts have `part` pixels, or as many as whole images.
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
    """Crops the image at 1:1, left of its middle, where most subjects have an edge."""
    width, height = (min(side, int(length * LARGEST_PART)) for length in picture.size)
    left, top = picture.width // 4, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def font(size: int) -> Any:
    """Returns Pillow's own font. Before Pillow 10.1, which some webuis use, it has only one size."""
    try:
        return ImageFont.load_default(size)
    except TypeError:
        return ImageFont.load_default()
