"""Loads the cut-outs and photographs of the collages, as listed in content.yaml.

A collage shows a subject on a *ground*, which is the background of the scene.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

LIST = Path(__file__).with_name("content.yaml")
STAMPS = "tuxpaint-stamps-default"
"""The Debian package that contains all cut-outs."""
FOLDER_VARIABLE = "DEMOFUSION_COLLAGE"
MARGIN = 0.25
"""Width of the transparent border, relative to the longer side of the cut-out.

Resampling reads pixels beyond the edge of the cut-out, so these pixels must exist.
"""


@dataclass(frozen=True)
class Cutout:
    """The image of a subject.

    `picture` has the mode RGBa (premultiplied alpha) and includes a transparent border of `margin` pixels on each side.
    `width` and `height` do not include the border.
    """

    caption: str
    picture: Image.Image
    margin: int
    width: int
    height: int


@dataclass(frozen=True)
class Ground:
    """A photographed ground. A scene shows a square of `frame` x `frame` pixels of the photograph, if that many fit."""

    caption: str
    picture: Image.Image
    frame: float


@dataclass(frozen=True)
class FlatGround:
    """A ground of one saturated color: hue in degrees, saturation and value in 0..1."""

    caption: str
    colour: tuple[float, float, float]


@dataclass(frozen=True)
class Content:
    """All subjects and all grounds. The flat grounds follow the photographed ones."""

    subjects: tuple[Cutout, ...]
    grounds: tuple[Ground | FlatGround, ...]


def caption(subject: str, ground: str) -> str:
    """Returns the prompt for a subject and a ground, such as "a bear on grass"."""
    return f"{subject} on {ground}"


def default_folder() -> Path:
    """Returns the folder of the unpacked packages.

    The environment variable DEMOFUSION_COLLAGE can set the folder. By default, it is in the user's `.cache`.
    """
    return Path(os.environ.get(FOLDER_VARIABLE, Path.home() / ".cache" / "demofusion-collage"))


def listed() -> dict:
    """Reads content.yaml."""
    return yaml.safe_load(LIST.read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def captions() -> tuple[list[str], list[str]]:
    """Returns the names of all subjects and of all grounds, such as "a bear" and "grass". Reads only content.yaml."""
    content = listed()
    grounds = [*content["grounds"], *content["flat_grounds"]]
    return [s["caption"] for s in content["subjects"]], [g["caption"] for g in grounds]


@lru_cache(maxsize=1)
def ground_kinds() -> dict[str, range]:
    """Maps the name of each world (`--world` of bench.quality) to the indices of its grounds.

    The world "collages" has the photographed grounds, and the world "flat" has the flat ones.
    """
    content = listed()
    photographs = len(content["grounds"])
    return {"collages": range(photographs), "flat": range(photographs, photographs + len(content["flat_grounds"]))}


def cutout(name: str, picture: Image.Image) -> Cutout:
    """Creates a cut-out from an RGBA image: crops the image to its visible part, and adds a transparent border."""
    alpha = np.asarray(picture.getchannel("A"))
    box = Image.fromarray((alpha > 12).astype(np.uint8) * 255).getbbox()
    picture = picture.crop(box)
    margin = round(MARGIN * max(picture.size))
    padded = Image.new("RGBA", (picture.width + 2 * margin, picture.height + 2 * margin))
    padded.paste(picture, (margin, margin))
    return Cutout(name, padded.convert("RGBa"), margin, picture.width, picture.height)


def ground(name: str, picture: Image.Image, frame: float, box: list[int] | None = None) -> Ground:
    """Creates a ground from a photograph. If `box` (left, upper, right, lower) is given, uses only this part."""
    picture = picture.convert("RGB")
    return Ground(name, picture.crop(tuple(box)) if box else picture, float(frame))


def load(folder: Path) -> Content:
    """Loads the images of the unpacked packages.

    Raises FileNotFoundError if an image is missing. The message explains how to download the packages.
    """
    content = listed()

    def opened(package: str, file: str) -> Image.Image:
        path = folder / package / content["packages"][package]["folder"] / file
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing. The collages need images from Debian packages. Run"
                " `python -m trial.collage.fetch` on Debian or Ubuntu. It downloads the packages, but does not install"
                " them."
            )
        return Image.open(path)

    subjects = [cutout(s["caption"], opened(STAMPS, s["file"]).convert("RGBA")) for s in content["subjects"]]
    grounds = [
        ground(g["caption"], opened(g["package"], g["file"]), g["frame"], g.get("box")) for g in content["grounds"]
    ]
    return Content(tuple(subjects), (*grounds, *flat_grounds(content)))


def flat_grounds(content: dict) -> list[FlatGround]:
    """Creates the flat grounds from the data of content.yaml."""
    return [FlatGround(g["caption"], tuple(g["colour"])) for g in content["flat_grounds"]]


@lru_cache(maxsize=1)
def installed() -> Content:
    """Loads the images from the default folder. Raises FileNotFoundError if an image is missing."""
    return load(default_folder())
