"""How far a stage has come while a sampler runs, and how fast."""

from __future__ import annotations

import time

from lib_demofusion.method.model_calls import CallsAhead
from lib_demofusion.method.stage import StageRun
from lib_demofusion.progress.costs import cells_ahead


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
