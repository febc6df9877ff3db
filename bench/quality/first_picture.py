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

from bench.quality.configurations import CONFIGURATIONS, Configuration
from bench.quality.strips import JPEG, Pictures
from bench.quality.ways import Sampling
from bench.quality.worlds import COLLAGES
from lib_demofusion.settings.presets import DEFAULT_PRESET
from trial.sheet import contact_sheet

WHOLE, PART = 120, 220
"""Pixels of a whole image's side, and of a part's side."""


class Shown(NamedTuple):
    """A row of the picture: the number of the prompt and seed, and the scale."""

    number: int
    scale: int


SHOWN = (Shown(9, 4), Shown(17, 4), Shown(2, 2))
TITLES = {
    "Lanczos": "Base image, Lanczos",
    "Hires fix ESRGAN 0.5": "Hires fix, ESRGAN, 0.5",
    DEFAULT_PRESET: f"DemoFusion, {DEFAULT_PRESET}",
}
"""The configurations and their titles."""


def ways() -> list[Configuration]:
    """Returns the configurations in the order of the columns."""
    return [one for name in TITLES for one in CONFIGURATIONS if one.name == name]


def captions() -> list[str]:
    """Returns the texts above the rows."""
    return [f"{COLLAGES.prompt(row.number)}, {row.scale}x" for row in SHOWN]


def comment() -> bytes:
    """Returns the JPEG comment of the file."""
    settings = {one.name: one.fingerprint() for one in ways()}
    return json.dumps({"rows": captions(), "configurations": settings}, sort_keys=True).encode()


def main() -> None:
    """Makes missing images and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures/comparison.jpg"), help="file to write")
    parser.add_argument("--work", type=Path, default=Path("test-output/first-picture"), help="folder for the images")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pictures = Pictures(args.work, COLLAGES, Sampling(bfloat16=args.precision == "bfloat16"))
    rows = [pictures.files(ways(), row.number, row.scale) for row in SHOWN]
    columns = [(title, "", files) for title, files in zip(TITLES.values(), zip(*rows))]
    contact_sheet(columns, captions(), WHOLE, PART).save(args.out, comment=comment(), **JPEG)


if __name__ == "__main__":
    main()
