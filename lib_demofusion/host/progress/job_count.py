"""Fractional numbers of jobs for the webui's progress bar. The webui's API returns them as integers."""

from __future__ import annotations

import math
from typing import Any

from modules import shared


class JobCount(int):
    """An integer number of jobs that keeps its fraction in sums and quotients.

    The webui's bar shows `job_no / job_count`, and its API returns both numbers. A stage takes as long as a fractional
    number of base images, and integers alone would move the bar in large jumps. `whole` is the integer that the API
    returns; by default, the fraction is dropped.
    """

    exact: float

    def __new__(cls, number: float, whole: int | None = None) -> JobCount:
        count = super().__new__(cls, int(number) if whole is None else whole)
        count.exact = exact(number)
        return count

    def __add__(self, other: Any) -> JobCount:
        return JobCount(self.exact + exact(other))

    __radd__ = __add__

    def __truediv__(self, other: Any) -> float:
        return self.exact / exact(other)

    def __rtruediv__(self, other: Any) -> float:
        return exact(other) / self.exact


def exact(number: float) -> float:
    """Returns the number with its fraction."""
    return number.exact if isinstance(number, JobCount) else float(number)


def add_jobs(number: float) -> None:
    """Adds to the webui's total number of jobs."""
    jobs = exact(shared.state.job_count) + number
    shared.state.job_count = JobCount(jobs, math.ceil(jobs))


def move_to(done: float) -> None:
    """Moves the webui's bar to `done` finished jobs."""
    state = shared.state
    # the webui adds its own steps, which cover one job only
    own = state.sampling_step / state.sampling_steps if state.sampling_steps else 0.0
    state.job_no = JobCount(done - own, int(done))
