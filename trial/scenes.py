"""Renders procedural scenes of one subject on textured ground, at any resolution and any zoom.

Lengths are in units of the short side of the frame. A box is (x0, y0, x1, y1) in fractions of the frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "cross")
SUBJECT_COLOURS = {
    "red": (0.86, 0.14, 0.12),
    "yellow": (0.92, 0.80, 0.14),
    "white": (0.90, 0.90, 0.88),
    "purple": (0.66, 0.18, 0.76),
}
GROUND_COLOURS = {
    "green": (0.22, 0.48, 0.24),
    "blue": (0.16, 0.32, 0.62),
    "brown": (0.44, 0.29, 0.17),
    "gray": (0.38, 0.39, 0.40),
}
WHOLE = (0.0, 0.0, 1.0, 1.0)
RADIUS_RANGE = (0.20, 0.30)
REACH = 1.15  # largest distance of a point of any shape from its centre, in radii

TEXTURE_OCTAVES, WAVES_PER_OCTAVE, TEXTURE_AMPLITUDE, TEXTURE_DECAY = 10, 5, 0.045, 0.70
PATTERN_OCTAVES, PATTERN_FREQUENCY, PATTERN_AMPLITUDE, PATTERN_DECAY = 9, 2.0, 0.070, 0.50

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Subject:
    """One shape. Its centre and radius are in short sides, and its angle is in radians."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    angle: float = 0.0


@dataclass(frozen=True)
class Scene:
    """Ground and subjects. `aspect` is width / height of the frame."""

    ground: str
    subjects: tuple[Subject, ...]
    texture_seed: int
    aspect: float = 1.0

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the frame, in short sides."""
        return max(self.aspect, 1.0), max(1.0 / self.aspect, 1.0)


def caption(shape: str, colour: str, ground: str) -> str:
    """Returns the full caption, which is the same for every view of a scene."""
    return f"a {colour} {shape} on {ground} ground"


def scene_caption(scene: Scene) -> str:
    """Returns the caption of a scene's first subject."""
    first = scene.subjects[0]
    return caption(first.shape, first.colour, scene.ground)


def all_labels() -> list[tuple[str, str, str]]:
    """Returns every (shape, subject colour, ground colour)."""
    return [(s, c, g) for s in SHAPES for c in SUBJECT_COLOURS for g in GROUND_COLOURS]


def random_scene(rng: np.random.Generator, label: tuple[str, str, str], aspect: float = 1.0) -> Scene:
    """Creates a scene with one subject completely inside the frame."""
    shape, colour, ground = label
    width, height = max(aspect, 1.0), max(1.0 / aspect, 1.0)
    radius = rng.uniform(*RADIUS_RANGE)
    margin = radius * REACH + 0.02
    subject = Subject(
        shape,
        colour,
        rng.uniform(margin, width - margin),
        rng.uniform(margin, height - margin),
        radius,
        rng.uniform(-0.2, 0.2),
    )
    return Scene(ground, (subject,), int(rng.integers(2**31)), aspect)


def random_box(rng: np.random.Generator, zoom: float) -> Box:
    """Returns a random window of 1/zoom of the frame's width and height."""
    side = 1.0 / zoom
    x0, y0 = rng.uniform(0.0, 1.0 - side, 2)
    return float(x0), float(y0), float(x0 + side), float(y0 + side)


def _texture_waves(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns wave vectors (K, 2) in cycles per short side, phases (K,) and colour amplitudes (K, 3)."""
    rng = np.random.default_rng(seed)
    octave = np.repeat(np.arange(TEXTURE_OCTAVES), WAVES_PER_OCTAVE)
    count = octave.size
    frequency = 1.5 * 2.0 ** (octave + rng.uniform(0.0, 1.0, count))
    direction = rng.uniform(0.0, np.pi, count)
    vectors = frequency[:, None] * np.stack([np.cos(direction), np.sin(direction)], 1)
    strength = TEXTURE_AMPLITUDE * np.sqrt(2.0 / WAVES_PER_OCTAVE) * 2.0 ** (-TEXTURE_DECAY * octave)
    colour = 1.0 + 0.3 * rng.standard_normal((count, 3))
    return vectors, rng.uniform(0.0, 2.0 * np.pi, count), strength[:, None] * colour


def _texture(seed: int, xs: np.ndarray, ys: np.ndarray, pixel: tuple[float, float]) -> np.ndarray:
    """Renders the ground's texture (H, W, 3), averaged over each pixel's area.

    A plane wave is the product of a row factor and a column factor, and its average over a pixel is a sinc. The whole
    sum is therefore one matrix product without any aliasing.
    """
    vectors, phase, colour = _texture_waves(seed)
    colour = colour * (np.sinc(vectors[:, 0] * pixel[0]) * np.sinc(vectors[:, 1] * pixel[1]))[:, None]
    across = 2.0 * np.pi * xs[None] * vectors[:, :1] + phase[:, None]  # (K, W)
    down = 2.0 * np.pi * ys[None] * vectors[:, 1:]  # (K, H)
    rows = np.concatenate([np.cos(down), -np.sin(down)]).astype(np.float32)
    columns = np.concatenate([np.cos(across), np.sin(across)]).astype(np.float32)
    weight = np.concatenate([colour, colour]).astype(np.float32)
    return np.stack([(rows * weight[:, c : c + 1]).T @ columns for c in range(3)], -1)


def _distance(subject: Subject, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the signed distance (H, W) to the subject's edge in radii, negative inside."""
    x, y = (x - subject.x) / subject.radius, (y - subject.y) / subject.radius
    cos, sin = np.cos(subject.angle), np.sin(subject.angle)
    x, y = cos * x + sin * y, cos * y - sin * x
    if subject.shape == "circle":
        return np.hypot(x, y) - 1.0
    if subject.shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.80
    if subject.shape == "triangle":
        slant = 0.5 * np.sqrt(3.0) * np.abs(x) - 0.5 * y
        return np.maximum(slant, y) - 0.5 * REACH
    if subject.shape == "cross":
        ax, ay = np.abs(x), np.abs(y)
        return np.minimum(np.maximum(ax - 1.0, ay - 0.36), np.maximum(ax - 0.36, ay - 1.0))
    raise ValueError(f"unknown shape {subject.shape!r}, expected one of {SHAPES}")


def _pattern(distance: np.ndarray, pixel: float) -> np.ndarray:
    """Returns the relative brightness (H, W) of the subject: contour lines of every scale and a dark rim.

    `pixel` is in radii.
    """
    shade = -0.22 * np.exp(-(((distance + 0.08) / 0.05) ** 2))
    for octave in range(PATTERN_OCTAVES):
        frequency = PATTERN_FREQUENCY * 2.0**octave
        fade = float(np.sinc(frequency * pixel))
        if frequency * pixel >= 1.0:
            break
        strength = PATTERN_AMPLITUDE * 2.0 ** (-PATTERN_DECAY * octave) * fade
        shade = shade + strength * np.cos(2.0 * np.pi * frequency * distance + 1.7 * octave)
    return shade


def render(scene: Scene, width: int, height: int, box: Box = WHOLE) -> np.ndarray:
    """Renders the view of `box` as (height, width, 3) float32 in 0..1. Pixels are area averages."""
    frame_w, frame_h = scene.size
    px, py = (box[2] - box[0]) * frame_w / width, (box[3] - box[1]) * frame_h / height
    xs = box[0] * frame_w + (np.arange(width) + 0.5) * px
    ys = box[1] * frame_h + (np.arange(height) + 0.5) * py
    texture = _texture(scene.texture_seed, xs, ys, (px, py))
    image = np.asarray(GROUND_COLOURS[scene.ground], np.float32) + texture
    pixel = float(np.sqrt(px * py))
    for subject in scene.subjects:
        distance = _distance(subject, xs[None].astype(np.float32), ys[:, None].astype(np.float32))
        cover = np.clip(0.5 - distance * subject.radius / pixel, 0.0, 1.0)[..., None]
        shade = 1.0 + _pattern(distance, pixel / subject.radius)[..., None]
        colour = np.asarray(SUBJECT_COLOURS[subject.colour], np.float32)
        image = image + cover * (colour * shade + 0.35 * texture - image)
    return np.clip(image, 0.0, 1.0).astype(np.float32)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Rounds an image in 0..1 to 8 bits."""
    return (np.asarray(image) * 255.0 + 0.5).clip(0, 255).astype(np.uint8)
