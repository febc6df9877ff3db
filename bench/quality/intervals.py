"""Confidence intervals by bootstrap over pictures, and whether two configurations differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RESAMPLES = 400
SEED = 5
LEVEL = 0.95

Statistic = Callable[[np.ndarray], float]
"""Returns a number for the pictures with the given numbers."""


@dataclass(frozen=True)
class Estimate:
    """A statistic, its interval, and its values under resampling, (RESAMPLES,)."""

    value: float
    low: float
    high: float
    draws: np.ndarray


def estimate(statistic: Statistic, pictures: int) -> Estimate:
    """The statistic of all pictures with its interval; the same draws of pictures for every configuration."""
    rng = np.random.default_rng((SEED, pictures))
    draws = np.array([statistic(rng.integers(0, pictures, pictures)) for _ in range(RESAMPLES)])
    value = statistic(np.arange(pictures))
    return Estimate(value, *_interval(draws), draws)


def _interval(draws: np.ndarray) -> tuple[float, float]:
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(draws, (tail, 100 - tail))
    return float(low), float(high)


def differs(a: Estimate, b: Estimate) -> int:
    """1 where a is larger than b, -1 where it is smaller, 0 where the paired bootstrap cannot tell them apart."""
    low, high = _interval(a.draws - b.draws)
    if low > 0:
        return 1
    return -1 if high < 0 else 0
