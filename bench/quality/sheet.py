"""The contact sheet: a column for each configuration, whole pictures and below each a part at 1:1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIDE, MARGIN, LABEL = 160, 8, 34
PAPER_COLOUR, INK, FAINT = "white", "black", "#666666"


def contact_sheet(columns: Sequence[tuple[str, str, Sequence[Path]]], captions: Sequence[str]) -> Image.Image:
    """A page of columns (title, second line, one file for each caption)."""
    width = MARGIN + len(columns) * (SIDE + MARGIN)
    block = 2 * SIDE + LABEL
    page = Image.new("RGB", (width, LABEL + len(captions) * block + MARGIN), PAPER_COLOUR)
    draw = ImageDraw.Draw(page)
    for row, text in enumerate(captions):
        draw.text((MARGIN, LABEL + row * block + 2), text, fill=INK, font=ImageFont.load_default(12))
    for number, (title, second, files) in enumerate(columns):
        x = MARGIN + number * (SIDE + MARGIN)
        draw.text((x, 4), title, fill=INK, font=ImageFont.load_default(13))
        draw.text((x, 19), second, fill=FAINT, font=ImageFont.load_default(10))
        for row, file in enumerate(files):
            y = LABEL + row * block + LABEL // 2
            with Image.open(file) as picture:
                page.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, y))
                page.paste(middle(picture), (x, y + SIDE + 2))
    return page


def middle(picture: Image.Image) -> Image.Image:
    """A part of the picture at 1:1, below and left of its middle, where most subjects have their edge."""
    left, top = picture.width // 4, picture.height // 2 - SIDE // 2
    return picture.crop((left, top, left + SIDE, top + SIDE))
