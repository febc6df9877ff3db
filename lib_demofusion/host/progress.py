"""The webui's progress bar over base and stages, in units of the base pass."""

from __future__ import annotations

import math
from typing import Any

from modules import shared

from lib_demofusion.plan import Plan, StagePlan


class Progress:
    """Shares the bar out by cost: a stage counts as many jobs as base passes it takes.

    The host's bar stands at (job_no + step / steps) / job_count and counts one job per iteration, which it ends itself
    after the picture is decoded; the jobs between are ours.
    """

    def __init__(self, plan: Plan):
        base = math.prod(plan.base)
        self._units = [max(1, round(stage.cells / base)) for stage in plan.stages]
        self._first_job = 0
        self._number = 0
        self._total = len(plan.stages) + 1

    @property
    def units(self) -> int:
        """Jobs of one iteration, the host's own included."""
        return 1 + sum(self._units)

    def announce(self, p: Any) -> None:
        """Adds the stages to the job count, before the host has set it or after someone has for a whole queue."""
        state = shared.state
        if state.job_count == -1:
            state.job_count = p.n_iter
            shared.total_tqdm.updateTotal(p.steps * p.n_iter * self._total)
        # in a grid or a folder batch every picture adds its stages when its turn comes
        state.job_count += p.n_iter * (self.units - 1)

    def base_done(self) -> None:
        """Ends the base picture's job."""
        self._first_job = shared.state.job_no

    def begin(self, stage: StagePlan) -> None:
        """Begins a stage's jobs and names it beside the bar."""
        self._number = stage.number
        # shows the finished picture where previews are asked for at the end only, and counts preview steps from zero
        shared.state.nextjob()
        height, width = stage.pixels
        shared.state.textinfo = f"DemoFusion {stage.number + 1}/{self._total} {width}x{height}"
        self.advance(0.0)

    def advance(self, share: float) -> None:
        """Moves the bar to a share of the current stage."""
        state = shared.state
        before = 1 + sum(self._units[: self._number - 1])
        units = self._units[self._number - 1]
        # the sampler's own step counter covers one unit of every stage
        state.job_no = self._first_job + before + int((units - 1) * share)

    def end(self) -> None:
        """Leaves the bar where the host's own end of the iteration completes it."""
        shared.state.job_no = self._first_job + sum(self._units)
        shared.state.textinfo = None
