"""Measures the progress and the speed of a stage while the sampler runs."""

from __future__ import annotations

import time

from lib_demofusion.method.costs import CallsAhead, cells_ahead
from lib_demofusion.method.stage import StageRun


class StageProgress:
    """Counts the cells that a stage has evaluated and those that remain, averaged over the rows of a model call."""

    def __init__(self, run: StageRun, calls_ahead: CallsAhead):
        self.done = self.ahead = 0.0
        self.rate: float | None = None
        """Seconds per cell and image. The first call is left out, because the GPU selects its kernels then."""
        self.images = len(run.anchor)
        self._run, self._calls_ahead, self._call = run, calls_ahead, -1
        self._before = self._cells = self._evaluated = self._left = 0.0
        self._warm = (0.0, 0.0)
        # if the webui evaluates cond and uncond one after the other, each batch of a call runs twice
        self._rounds = 1.0

    def before_batch(self, cells: float) -> None:
        """Records that a batch of `cells` cells is about to run."""
        if self._run.call != self._call:
            self._begin_call()
        self._set(min(self._evaluated / (self._rounds * self._cells), 1.0))
        self._evaluated += cells

    def after_call(self) -> None:
        """Records the end of a model call, when the sampler runs its callback."""
        self._set(1.0)

    def _set(self, share: float) -> None:
        self.done, self.ahead = self._before + share * self._cells, max(self._left - share * self._cells, 0.0)

    def _begin_call(self) -> None:
        run, now = self._run, time.perf_counter()
        self._before += self._cells
        if self._call == 0:
            self._warm = now, self._before
        elif self._call > 0:
            # measured from call to call, because a GPU works asynchronously and only the next call waits for the result
            self.rate = (now - self._warm[0]) / ((self._before - self._warm[1]) * self.images)
        if self._call >= 0:
            self._rounds = max(self._evaluated / self._cells, 1.0)
        self._call, self._evaluated = run.call, 0.0
        self._cells = run.stage.cells_at(run.weights.dilated)
        calls = 1 + self._calls_ahead(run.call, run.level)
        self._left = cells_ahead(run.stage, run.settings, run.timestep, calls)
