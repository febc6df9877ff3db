"""Defines the worlds. A world is a set of prompts, and renders correct images for them (*true renderings*).

A prompt names a subject and a *ground*, the background of a collage. The detector checks both in the measured images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trial.collage import detector
from trial.collage.content import caption, captions, ground_kinds, installed
from trial.collage.scenes import random_collage, render

TRUE_SEED = 90_000
"""Seed of the first set of true renderings. The small model and the detector were not trained on these scenes."""


@dataclass(frozen=True)
class Sight:
    """The detector's results for a whole image.

    `subjects` is the number of subjects. `place` is the center (x, y) of the most probable subject in fractions of the
    image, or None if the detector finds no subject. `right_subject` and `right_ground` are True if this subject and the
    ground are those of the prompt.
    """

    subjects: int
    right_subject: bool
    right_ground: bool
    place: tuple[float, float] | None


@dataclass(frozen=True)
class World:
    """The prompts about the grounds whose indices are in `grounds`. Images are (H, W, 3) float in 0..1."""

    name: str
    grounds: range

    def label(self, number: int) -> tuple[int, int]:
        """Returns the indices of the subject and of the ground of image `number`.

        Every subject and every ground occurs about equally often.
        """
        subjects = len(captions()[0])
        return (number * 5) % subjects, self.grounds[(number * 13 + number // subjects) % len(self.grounds)]

    def prompt(self, number: int) -> str:
        """Returns the prompt of image `number`."""
        (subjects, grounds), (subject, ground) = captions(), self.label(number)
        return caption(subjects[subject], grounds[ground])

    def true_rendering(self, number: int, side: int, set_: int) -> np.ndarray:
        """Renders a random scene for the prompt of image `number`. With another number `set_`, the scene is another."""
        rng, content = np.random.default_rng((TRUE_SEED + set_, number)), installed()
        return render(content, random_collage(content, rng, self.label(number)), side)

    def sight(self, picture: np.ndarray, number: int) -> Sight:
        """Runs the detector on an image, and compares its results with the prompt of image `number`."""
        reading, (subject, ground) = detector.read([picture])[0], self.label(number)
        first = reading.subjects[0] if reading.subjects else None
        right = first is not None and first.subject == subject
        place = (first.x, first.y) if first is not None else None
        return Sight(len(reading.subjects), right, reading.ground == ground, place)


WORLDS = {name: World(name, grounds) for name, grounds in ground_kinds().items()}
COLLAGES = WORLDS["collages"]
