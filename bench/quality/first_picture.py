"""Makes the first picture of README: python -m bench.quality.first_picture.

Every subject is shown whole and reduced, and as a part at 1:1 that is larger than the whole. The JPEG comment contains
the prompts, the scales and the configurations, which a test compares with README.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw

from bench.quality.configurations import CONFIGURATIONS, Configuration
from bench.quality.sheet import FAINT, INK, MARGIN, PAPER_COLOUR, font, middle
from bench.quality.strips import JPEG, Pictures
from bench.quality.ways import Sampling
from bench.quality.worlds import COLLAGES
from lib_demofusion.settings.presets import DEFAULT_PRESET

WHOLE, PART, TEXT = 120, 220, 18
"""Pixels of a whole image's side, of a part's side, and of a line of text."""
SMALL_PART = 2 / 3
"""Largest side of a part, as a share of the image."""


class Shown(NamedTuple):
    """A row of the picture: the number of the prompt and seed, and the scale."""

    number: int
    scale: int


SHOWN = (Shown(700, 4), Shown(702, 4), Shown(706, 2))
TITLES = {
    "Lanczos": "Base image, Lanczos",
    "Hires fix 0.5": "Hires fix, Latent, 0.5",
    DEFAULT_PRESET: f"DemoFusion, {DEFAULT_PRESET}",
}
"""The configurations and their titles."""


def ways() -> list[Configuration]:
    """Returns the configurations in the order of the columns."""
    return [one for name in TITLES for one in CONFIGURATIONS if one.name == name]


def caption(row: Shown) -> str:
    """Returns the text above a row."""
    return f"{COLLAGES.prompt(row.number)}, {row.scale}x"


def comment() -> bytes:
    """Returns the JPEG comment of the file."""
    settings = {one.name: one.fingerprint() for one in ways()}
    return json.dumps({"rows": [caption(row) for row in SHOWN], "configurations": settings}, sort_keys=True).encode()


def part_of(picture: Image.Image) -> Image.Image:
    """Crops a part at 1:1."""
    return middle(picture, min(PART, int(picture.width * SMALL_PART)))


def sheet(rows: list[tuple[str, list[Path]]]) -> Image.Image:
    """Draws a row for each caption and its files."""
    step = PART + MARGIN
    block = 2 * TEXT + WHOLE + PART + MARGIN
    page = Image.new("RGB", (MARGIN + len(TITLES) * step, TEXT + len(rows) * block), PAPER_COLOUR)
    draw = ImageDraw.Draw(page)
    for column, title in enumerate(TITLES.values()):
        draw.text((MARGIN + column * step, 4), title, fill=INK, font=font(14))
    for number, (text, files) in enumerate(rows):
        top = TEXT + number * block
        draw.text((MARGIN, top + 4), text, fill=FAINT, font=font(12))
        for column, file in enumerate(files):
            x, y = MARGIN + column * step, top + TEXT + 4
            with Image.open(file) as picture:
                page.paste(picture.resize((WHOLE, WHOLE), Image.Resampling.LANCZOS), (x, y))
                page.paste(part_of(picture), (x, y + WHOLE + 4))
    return page


def main() -> None:
    """Makes missing images and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures/comparison.jpg"), help="the file")
    parser.add_argument("--work", type=Path, default=Path("test-output/first-picture"), help="folder of the images")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pictures = Pictures(args.work, COLLAGES, Sampling(bfloat16=args.precision == "bfloat16"))
    rows = [(caption(row), pictures.files(ways(), row.number, row.scale)) for row in SHOWN]
    sheet(rows).save(args.out, comment=comment(), **JPEG)


if __name__ == "__main__":
    main()
