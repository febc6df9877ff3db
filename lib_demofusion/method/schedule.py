"""The cosine weights of a stage as functions of the model's timestep (arXiv 2311.16973, section 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lib_demofusion.settings.fields import Settings

TIMESTEPS = 1000
"""T, the length of the model's training schedule."""

ROUNDS_AWAY = 2.0**-25
"""A summand of this relative size does not change a float32 sum."""


@dataclass(frozen=True)
class Weights:
    """The paper's c1, c2, c3 at one noise level."""

    skip: float
    """c1: weight of the noised anchor in x."""
    dilated: float
    """c2: weight of the dilated path in the fused prediction."""
    blur: float
    """c3: factor of the blur sigma."""


def cosine_factor(t: float) -> float:
    """Returns (1 + cos(pi (T - t) / T)) / 2: one at pure noise (t = T), zero at t = 0."""
    return (1 + math.cos(math.pi * (TIMESTEPS - t) / TIMESTEPS)) / 2


def weights_at(t: float, settings: Settings) -> Weights:
    """Returns the weights at the model's timestep `t` (0 to 1000, fractions allowed). `t` is not a step index."""
    factor = cosine_factor(t)
    return Weights(
        skip=factor**settings.cosine_scale_1,
        dilated=_gated(factor**settings.cosine_scale_2, settings),
        blur=0.99 * factor**settings.cosine_scale_3 + 0.01,
    )


def _gated(c2: float, settings: Settings) -> float:
    """Returns c2, or rounds it to 0 or 1 if one of the two paths has too little weight to be evaluated."""
    if c2 <= max(settings.dilated_threshold, ROUNDS_AWAY):
        return 0.0
    return 1.0 if 1 - c2 <= max(settings.local_threshold, ROUNDS_AWAY) else c2
