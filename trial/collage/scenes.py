"""Renders collages at any resolution and any zoom with antialiasing.

Scenes are square, and lengths are fractions of their side. A box (x0, y0, x1, y1) is the part that a view shows.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from PIL import Image

from trial.collage.content import Content, FlatGround

Box = tuple[float, float, float, float]
WHOLE = (0.0, 0.0, 1.0, 1.0)

SIZE_RANGE = (0.60, 0.78)
"""Longest side of a subject."""
EDGE = 0.02
"""Minimum distance of a subject from the border of the scene."""
HUE_SPREAD, VALUE_SPREAD = 8.0, 0.08
"""A flat ground's hue varies by this many degrees in both directions, its value by this much."""
REACH = 4.0
"""Pixels of the view that are resampled beyond a cut-out's edge. This is more than the filter's support."""


@dataclass(frozen=True)
class Placed:
    """One subject: its centre and its longest side."""

    subject: int
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Collage:
    """Ground and subjects, by index.

    Left and top, in 0..1, choose the part of the photograph, or the shade of a flat ground.
    """

    ground: int
    subjects: tuple[Placed, ...]
    left: float = 0.5
    top: float = 0.5
    mirrored: bool = False


def extent(content: Content, placed: Placed) -> tuple[float, float]:
    """Returns width and height of a subject."""
    cut = content.subjects[placed.subject]
    scale = placed.size / max(cut.width, cut.height)
    return cut.width * scale, cut.height * scale


def random_collage(
    content: Content, rng: np.random.Generator, label: tuple[int, int], size: float | None = None
) -> Collage:
    """Creates a scene with one subject completely inside it, of a random size or the given one."""
    subject, ground = label
    drawn = rng.uniform(*SIZE_RANGE)
    size = drawn if size is None else size
    margins = (min(length / 2 + EDGE, 0.5) for length in extent(content, Placed(subject, 0.0, 0.0, size)))
    x, y = (float(rng.uniform(margin, 1.0 - margin)) for margin in margins)
    left, top = rng.uniform(0.0, 1.0, 2)
    return Collage(ground, (Placed(subject, x, y, size),), float(left), float(top), bool(rng.integers(2)))


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Rounds an image in 0..1 to 8 bits."""
    return (np.asarray(image) * 255.0 + 0.5).clip(0, 255).astype(np.uint8)


def render(content: Content, scene: Collage, width: int, height: int, box: Box = WHOLE) -> np.ndarray:
    """Renders the view of `box` as (height, width, 3) float32 in 0..1."""
    view = _ground(content, scene, (width, height), box)
    for placed in scene.subjects:
        _paste(content, view, placed, box)
    return np.clip(view, 0.0, 1.0)


def shade(ground: FlatGround, scene: Collage) -> tuple[float, float, float]:
    """Returns a flat ground's colour (r, g, b) in 0..1 in a scene. It does not depend on the view."""
    hue, saturation, value = ground.colour
    hue += HUE_SPREAD * (2.0 * scene.left - 1.0)
    value += VALUE_SPREAD * (2.0 * scene.top - 1.0)
    return colorsys.hsv_to_rgb(hue / 360.0 % 1.0, saturation, min(value, 1.0))


def _ground(content: Content, scene: Collage, size: tuple[int, int], box: Box) -> np.ndarray:
    """Renders the ground of a view, (h, w, 3)."""
    ground = content.grounds[scene.ground]
    if isinstance(ground, FlatGround):
        return np.full((size[1], size[0], 3), shade(ground, scene), np.float32)
    picture = ground.picture
    pixels = min(ground.frame, *picture.size)
    x0, x1 = (1.0 - box[2], 1.0 - box[0]) if scene.mirrored else (box[0], box[2])
    at_x, at_y = (share * (side - pixels) for share, side in zip((scene.left, scene.top), picture.size))
    region = (at_x + x0 * pixels, at_y + box[1] * pixels, at_x + x1 * pixels, at_y + box[3] * pixels)
    limits = (picture.width, picture.height) * 2
    clipped = tuple(min(max(edge, 0.0), float(limit)) for edge, limit in zip(region, limits))
    view = np.asarray(picture.resize(size, Image.Resampling.LANCZOS, box=clipped), np.float32) / 255.0
    return view[:, ::-1].copy() if scene.mirrored else view


def _paste(content: Content, view: np.ndarray, placed: Placed, box: Box) -> None:
    """Pastes a subject onto a view (h, w, 3), in place."""
    cut = content.subjects[placed.subject]
    scale = placed.size / max(cut.width, cut.height)  # length per pixel of the cut-out
    padded, ranges, region = cut.picture.size, [], []
    for axis, centre in enumerate((placed.x, placed.y)):
        cells = view.shape[1 - axis]
        pixel = (box[axis + 2] - box[axis]) / cells  # length per pixel of the view
        corner = (centre - scale * padded[axis] / 2 - box[axis]) / pixel
        length, margin = scale * padded[axis] / pixel, scale * cut.margin / pixel
        inset = max(margin - REACH, 0.0)
        first = max(int(np.ceil(corner + inset)), 0)
        last = min(int(np.floor(corner + length - inset)), cells)
        if last <= first:
            return
        ranges.append((first, last))
        region.append([(edge - corner) * pixel / scale for edge in (first, last)])
    (x0, x1), (y0, y1) = ranges
    source = (max(region[0][0], 0.0), max(region[1][0], 0.0))
    source += (min(region[0][1], float(padded[0])), min(region[1][1], float(padded[1])))
    part = cut.picture.resize((x1 - x0, y1 - y0), Image.Resampling.LANCZOS, box=source)
    # Pillow has no array of mode RGBa, but its bytes are the same as those of RGBA
    layer = np.frombuffer(part.tobytes("raw", "RGBa"), np.uint8).reshape(y1 - y0, x1 - x0, 4).astype(np.float32) / 255.0
    area = view[y0:y1, x0:x1]
    area *= 1.0 - layer[..., 3:]
    area += layer[..., :3]
