"""The webui's progress bar over base and stages, in units of the base pass."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from modules import sd_samplers, shared

from lib_demofusion.host.progress import timing
from lib_demofusion.method.plan import Plan, StagePlan
from lib_demofusion.progress.costs import Pass, RunCosts, run_costs
from lib_demofusion.settings.fields import Settings

PARTS = 3
"""Of a stage: decoding what it begins from, encoding that where it was enlarged as a picture, and sampling."""

LEAST_BASE = 0.002
"""The base pass is a job even where it takes no time; then it is no more than this share of the bar."""


class Progress:
    """Shares the bar out by cost, so that the time left follows from the time taken at any point of it.

    The host's bar stands at (job_no + step / steps) / job_count and counts one job per iteration, which it ends itself
    after the picture is decoded; the jobs between are ours, as many as base passes take their time. That is no whole
    number, nor is job_no in a stage: what the sampler's own step counter adds is taken off, which covers one job only.
    """

    def __init__(self, plan: Plan, costs: RunCosts):
        self._total = len(plan.stages) + 1
        stages = zip(costs.pictures, costs.anchors, costs.stages)
        parts = [cost for stage in stages for cost in stage] + [costs.decoding]
        base = max(costs.base, LEAST_BASE * sum(parts))
        self._jobs = sum(parts) / base if plan.stages else 0
        # of each part, from the begin of the first on
        self._borders = [1 + sum(parts[:i]) / base for i in range(len(parts) + 1)]
        self._first_job = 0.0
        self._part = 0

    @property
    def units(self) -> float:
        """Jobs of one iteration, the host's own included."""
        return 1 + self._jobs

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
        self._part = PARTS * (stage.number - 1)
        # shows the finished picture where previews are asked for at the end only, and counts preview steps from zero
        shared.state.nextjob()
        height, width = stage.pixels
        shared.state.textinfo = f"DemoFusion {stage.number + 1}/{self._total} {width}x{height}"
        self.decoding(0.0)

    def decoding(self, share: float) -> None:
        """Moves the bar to a share of decoding what the current stage begins from; behind the last, of the result."""
        self._move_within(self._part, share)

    def encoding(self, share: float) -> None:
        """Moves the bar to a share of encoding what the current stage begins from."""
        self._move_within(self._part + 1, share)

    def sampling(self, share: float) -> None:
        """Moves the bar to a share of the current stage's sampling."""
        self._move_within(self._part + 2, share)

    def sampled(self) -> None:
        """Moves the bar to the end of the last stage, behind which the picture is decoded."""
        self._part = len(self._borders) - 2
        self.decoding(0.0)

    def end(self) -> None:
        """Leaves the bar where the host's own end of the iteration completes it."""
        shared.state.job_no = self._first_job + self._jobs
        shared.state.textinfo = None

    def _move_within(self, part: int, share: float) -> None:
        begin, end = self._borders[part : part + 2]
        self._move(begin + share * (end - begin))

    def _move(self, jobs: float) -> None:
        state = shared.state
        own = state.sampling_step / state.sampling_steps if state.sampling_steps else 0.0
        state.job_no = self._first_job + jobs - own


def make_progress(p: Any, plan: Plan, settings: Settings, pictures: bool, passes: Sequence[Pass]) -> Progress:
    """Returns the progress of a request; `pictures` says whether every stage's is decoded.

    `passes` are those that the webui itself makes.
    """
    config = sd_samplers.find_sampler_config(p.sampler_name)
    two_calls = config is not None and config.options.get("second_order", False)
    decoding = functools.partial(timing.decoding_cells, p)
    return Progress(plan, run_costs(plan, settings, p.steps, two_calls, passes, pictures, decoding))
