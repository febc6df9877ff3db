"""Renders collages at any size.

A collage is a square scene: a ground and the subjects on it. All positions and lengths in a scene are fractions of its
side.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from PIL import Image

from trial.collage.content import Content, FlatGround

SIZE_RANGE = (0.60, 0.78)
"""Range of the length of a subject's longer side, in `random_collage`."""
EDGE = 0.02
"""Minimum distance between a subject and the border of the scene, in `random_collage`."""
HUE_SPREAD, VALUE_SPREAD = 8.0, 0.08
"""Maximum change of a flat ground's hue (in degrees) and of its value (HSV, 0..1) in a scene."""
REACH = 4.0
"""Width of the part of the transparent border that is pasted with a cut-out, in pixels of the result.

Resampling blurs the edge of the cut-out over fewer pixels, so the blurred edge is pasted completely.
"""


@dataclass(frozen=True)
class Placed:
    """A subject in a scene: its index, the position of its centre, and the length of its longer side."""

    subject: int
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Collage:
    """The content of a scene. `ground` is the index of the ground.

    `left` and `top`, in 0..1, select the part of the photograph that the scene shows, or the hue and value of a flat
    ground (see `shade`). If `mirrored` is set, the photograph is flipped horizontally, but the subjects are not.
    """

    ground: int
    subjects: tuple[Placed, ...]
    left: float = 0.5
    top: float = 0.5
    mirrored: bool = False


def extent(content: Content, placed: Placed) -> tuple[float, float]:
    """Computes the width and height of a subject in the scene."""
    cut = content.subjects[placed.subject]
    scale = placed.size / max(cut.width, cut.height)
    return cut.width * scale, cut.height * scale


def random_collage(
    content: Content, rng: np.random.Generator, label: tuple[int, int], size: float | None = None
) -> Collage:
    """Creates a random scene with one subject, which is completely visible.

    `label` contains the indices of the subject and of the ground. If `size` is None, the size of the subject is random.
    """
    subject, ground = label
    drawn = rng.uniform(*SIZE_RANGE)
    size = drawn if size is None else size
    margins = (min(length / 2 + EDGE, 0.5) for length in extent(content, Placed(subject, 0.0, 0.0, size)))
    x, y = (float(rng.uniform(margin, 1.0 - margin)) for margin in margins)
    left, top = rng.uniform(0.0, 1.0, 2)
    return Collage(ground, (Placed(subject, x, y, size),), float(left), float(top), bool(rng.integers(2)))


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Converts an image in 0..1 to 8 bits. Clips values outside of this range."""
    return (np.asarray(image) * 255.0 + 0.5).clip(0, 255).astype(np.uint8)


def render(content: Content, scene: Collage, side: int) -> np.ndarray:
    """Renders a scene with antialiasing. Returns an image (side, side, 3) as float32 in 0..1."""
    image = _ground(content, scene, side)
    for placed in scene.subjects:
        _paste(content, image, placed)
    return np.clip(image, 0.0, 1.0)


def shade(ground: FlatGround, scene: Collage) -> tuple[float, float, float]:
    """Computes the color (r, g, b) in 0..1 that a flat ground has in a scene."""
    hue, saturation, value = ground.colour
    hue += HUE_SPREAD * (2.0 * scene.left - 1.0)
    value += VALUE_SPREAD * (2.0 * scene.top - 1.0)
    return colorsys.hsv_to_rgb(hue / 360.0 % 1.0, saturation, min(value, 1.0))


def _ground(content: Content, scene: Collage, side: int) -> np.ndarray:
    """Renders the ground of a scene, (side, side, 3)."""
    ground = content.grounds[scene.ground]
    if isinstance(ground, FlatGround):
        return np.full((side, side, 3), shade(ground, scene), np.float32)
    picture = ground.picture
    pixels = min(ground.frame, *picture.size)
    left, top = (share * (length - pixels) for share, length in zip((scene.left, scene.top), picture.size))
    box = (left, top, min(left + pixels, picture.width), min(top + pixels, picture.height))
    image = np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS, box=box), np.float32) / 255.0
    return image[:, ::-1].copy() if scene.mirrored else image


def _paste(content: Content, image: np.ndarray, placed: Placed) -> None:
    """Pastes a subject onto an image (side, side, 3), in place."""
    cut, side = content.subjects[placed.subject], len(image)
    pixel = 1.0 / side
    scale = placed.size / max(cut.width, cut.height)  # length of a pixel of the cut-out in the scene
    target, source = [], []
    for centre, padded in zip((placed.x, placed.y), cut.picture.size):
        corner = (centre - scale * padded / 2) / pixel
        inset = max(scale * cut.margin / pixel - REACH, 0.0)
        first = max(int(np.ceil(corner + inset)), 0)
        last = min(int(np.floor(corner + scale * padded / pixel - inset)), side)
        target.append(slice(first, last))
        source.append((max((first - corner) * pixel / scale, 0.0), min((last - corner) * pixel / scale, float(padded))))
    area = image[target[1], target[0]]
    box = tuple(edge for edges in zip(*source) for edge in edges)
    part = cut.picture.resize((area.shape[1], area.shape[0]), Image.Resampling.LANCZOS, box=box)
    # np.asarray does not accept Pillow's mode RGBa; the bytes have the same order as in mode RGBA
    layer = np.frombuffer(part.tobytes("raw", "RGBa"), np.uint8).reshape(*area.shape[:2], 4).astype(np.float32) / 255.0
    area *= 1.0 - layer[..., 3:]
    area += layer[..., :3]
