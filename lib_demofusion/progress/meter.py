"""How far a stage has come while a sampler runs, and how fast."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from lib_demofusion.method.stage import StageRun
from lib_demofusion.method.step_gate import model_calls
from lib_demofusion.progress.costs import cells_ahead

CallsAhead = Callable[[int, float], float]
"""Returns about how many model calls follow the one of this number, counted from 0, at this noise level."""

ADAPTIVE_CALLS, ADAPTIVE_RANGE, LOWEST_SIGMA = 60, 6.2, 0.03
"""DPM adaptive's calls in a whole schedule where none was seen yet, the schedule's length in log sigma, and its end."""

EXTRA_CALLS, BEND = 8, 1.25
"""Measured on DPM adaptive: by how many calls it exceeds its pace, as its first steps are short wherever it begins and
the last one is cut off; and how its steps grow longer as the noise falls, an exponent."""


def calls_ahead(name: str, arguments: Mapping[str, Any], second_order: bool, of_base: int) -> CallsAhead:
    """Returns what tells the number of calls to come of the sampling function `name`, from the function's arguments.

    DPM adaptive goes by the image: about as it did in the base pass, in which it called its model `of_base` times.
    """
    total = model_calls(name, arguments, second_order)
    if total is not None:
        return lambda call, level: max(total - 1 - call, 0)
    whole, end = (of_base or ADAPTIVE_CALLS) - EXTRA_CALLS, arguments.get("sigma_min", LOWEST_SIGMA)

    def of_adaptive(call: int, level: float) -> float:
        part: float = max(math.log(level / end), 0.0) / ADAPTIVE_RANGE
        return max(whole * math.pow(part, BEND) + max(EXTRA_CALLS - call, 0) - 1, 0.0)

    return of_adaptive


class StageMeter:
    """Counts the cells that a stage has evaluated, and those that are to come."""

    def __init__(self, run: StageRun, ahead: CallsAhead):
        self.rate: float | None = None
        """Seconds for a cell of a view and image. The first call does not count: kernels are chosen in it."""
        self._run, self._calls_ahead, self._call = run, ahead, -1
        self._done = self._cells = self._evaluated = self._ahead = 0.0
        self._warm = (0.0, 0.0)
        # where the webui evaluates conds and unconds one after the other, a call's batches come twice
        self._rounds = 1.0

    def before_batch(self, cells: float) -> tuple[float, float]:
        """Returns cells done and to come before a batch of `cells` cells, as a mean over the rows of the call."""
        if self._run.call != self._call:
            self._begin_call()
        within = min(self._evaluated / (self._rounds * self._cells), 1.0)
        self._evaluated += cells
        return self._told(within)

    def after_call(self) -> tuple[float, float]:
        """Returns cells done and to come behind a call, of which the sampler's callback tells."""
        return self._told(1.0)

    def _told(self, within: float) -> tuple[float, float]:
        return self._done + within * self._cells, (1 - within) * self._cells + self._ahead

    def _begin_call(self) -> None:
        run, now = self._run, time.perf_counter()
        self._done += self._cells
        if self._call == 0:
            self._warm = now, self._done
        elif self._call > 0:
            # from call to call: a card is handed work ahead of time, and only the next call waits for it
            self.rate = (now - self._warm[0]) / ((self._done - self._warm[1]) * len(run.anchor))
        if self._call >= 0:
            self._rounds = max(self._evaluated / self._cells, 1.0)
        self._call, self._evaluated = run.call, 0.0
        self._cells = run.stage.cells_at(run.weights.dilated)
        self._ahead = cells_ahead(run.stage, run.settings, run.timestep, self._calls_ahead(run.call, run.level))
