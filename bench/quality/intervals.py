"""Computes confidence intervals by a bootstrap over images, and compares two configurations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RESAMPLES = 400
SEED = 5
LEVEL = 0.95

Statistic = Callable[[np.ndarray], float]
"""Computes a statistic over the images with the given indices. An index can occur more than once."""


@dataclass(frozen=True)
class Estimate:
    """A statistic, its interval, and its values (RESAMPLES,) under resampling."""

    value: float
    low: float
    high: float
    draws: np.ndarray


def estimate(statistic: Statistic, pictures: int) -> Estimate:
    """Estimates a statistic of all images with its interval. Every configuration uses the same resamples of images."""
    rng = np.random.default_rng((SEED, pictures))
    draws = np.array([statistic(rng.integers(0, pictures, pictures)) for _ in range(RESAMPLES)])
    value = statistic(np.arange(pictures))
    return Estimate(value, *_interval(draws), draws)


def _interval(draws: np.ndarray) -> tuple[float, float]:
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(draws, (tail, 100 - tail))
    return float(low), float(high)


def differs(a: Estimate, b: Estimate) -> int:
    """Returns 1 if a is larger than b, -1 if it is smaller, and 0 if the paired bootstrap finds no difference."""
    low, high = _interval(a.draws - b.draws)
    if low > 0:
        return 1
    return -1 if high < 0 else 0
