"""Defines the worlds of the measured images: prompts by number, true renderings, and detectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trial import detect, scenes
from trial.collage import detector
from trial.collage.content import caption as join
from trial.collage.content import captions, installed
from trial.collage.scenes import random_collage
from trial.collage.scenes import render as render_collage
from trial.small_model import CHECKPOINT, COLLAGE_CHECKPOINT

TRUE_SEED = 90_000
"""Seed of the first set of true renderings. No training set uses it."""


@dataclass(frozen=True)
class Sight:
    """The detector's results for a whole image.

    `place` is the subject's centre in fractions of the image, or None without a subject. `right_subject` and
    `right_ground` are True if they match the prompt.
    """

    subjects: int
    right_subject: bool
    right_ground: bool
    place: tuple[float, float] | None


@dataclass(frozen=True)
class World:
    """Functions of an image's number, and of images (H, W, 3) float in 0..1.

    `true_rendering(number, side, set)` is a random scene of the prompt; sets are independent of each other.
    `crops(picture)` is the share of 1:1 crops that show a whole subject, in a world whose subjects are larger than such
    a crop.
    """

    name: str
    checkpoint: Path
    prompt: Callable[[int], str]
    true_rendering: Callable[[int, int, int], np.ndarray]
    sight: Callable[[np.ndarray, int], Sight]
    crops: Callable[[np.ndarray], float]


def shape_label(number: int) -> tuple[str, str, str]:
    """Returns shape, subject colour and ground colour of image `number`. The first 64 are all different."""
    labels = scenes.all_labels()
    return labels[(number * 21) % len(labels)]


def _true_shape(number: int, side: int, set_: int) -> np.ndarray:
    rng = np.random.default_rng((TRUE_SEED + set_, number))
    return scenes.render(scenes.random_scene(rng, shape_label(number)), side, side)


def _see_shape(picture: np.ndarray, number: int) -> Sight:
    found, (shape, colour, ground) = detect.classify(picture), shape_label(number)
    right = (found.shape, found.colour) == (shape, colour)
    return Sight(detect.count_subjects(picture), right, found.ground == ground, detect.place(picture))


def _shape_crops(picture: np.ndarray) -> float:
    """Counts a subject as whole if its mask does not touch the crop's border."""
    crops = detector.crops(picture)
    return sum(detect.count_inner_subjects(crop) > 0 for crop in crops) / len(crops)


def collage_label(number: int) -> tuple[int, int]:
    """Returns subject and ground of image `number`, by index. Every subject and ground occurs about equally often."""
    subjects, grounds = captions()
    return (number * 5) % len(subjects), (number * 3 + number // len(subjects)) % len(grounds)


def _collage_prompt(number: int) -> str:
    subjects, grounds = captions()
    subject, ground = collage_label(number)
    return join(subjects[subject], grounds[ground])


def _true_collage(number: int, side: int, set_: int) -> np.ndarray:
    rng, content = np.random.default_rng((TRUE_SEED + set_, number)), installed()
    return render_collage(content, random_collage(content, rng, collage_label(number)), side, side)


def _see_collage(picture: np.ndarray, number: int) -> Sight:
    reading, (subject, ground) = detector.read([picture])[0], collage_label(number)
    first = reading.subjects[0] if reading.subjects else None
    right = first is not None and first.subject == subject
    place = (first.x, first.y) if first is not None else None
    return Sight(len(reading.subjects), right, reading.ground == ground, place)


SHAPES = World(
    "shapes",
    CHECKPOINT,
    lambda number: scenes.caption(*shape_label(number)),
    _true_shape,
    _see_shape,
    _shape_crops,
)
COLLAGES = World(
    "collages", COLLAGE_CHECKPOINT, _collage_prompt, _true_collage, _see_collage, detector.crops_with_subject
)
WORLDS = {world.name: world for world in (COLLAGES, SHAPES)}
