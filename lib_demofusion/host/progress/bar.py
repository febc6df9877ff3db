"""The webui's progress bar over base and stages, in units of the base pass."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from modules import sd_samplers, shared

from lib_demofusion.host.progress import timing
from lib_demofusion.method.plan import Plan, StagePlan
from lib_demofusion.method.stage_steps import steps_of_stage
from lib_demofusion.progress.costs import Pass, RunCosts, run_costs
from lib_demofusion.progress.forecast import schedule_steps
from lib_demofusion.settings.fields import Settings

PARTS = 3
"""Of a stage: decoding what it begins from, encoding that where it was enlarged as a picture, and sampling."""

LEAST_BASE = 0.002
"""The base pass is a job even where it takes no time; then it is no more than this share of the bar."""


class Console:
    """The total of the webui's bar on the console, which counts the sampler's callbacks.

    Samplers have their own ways of counting, and stages can be cut short: what was planned is replaced by what was done
    whenever a part ends. `host` are the steps that the webui counts for an iteration, run or not.
    """

    def __init__(self, host: int, stages: int):
        self._planned = (host, stages)
        self._before: int | None = None

    def announce(self, p: Any, jobs: int) -> None:
        """Adds the stages' steps; where nobody has told of any, also the host's for each of its `jobs`."""
        if self._bar is None:
            shared.total_tqdm.updateTotal(self._planned[0] * jobs)
        self._before = getattr(self._bar, "n", 0)
        self._expect(p.n_iter * self._planned[1])

    def ended(self, of_stages: bool) -> None:
        """Takes note that the host's own passes of an iteration are done, or the stages."""
        if self._before is None:
            return
        done = getattr(self._bar, "n", 0)
        self._expect(done - self._before - self._planned[of_stages])
        self._before = done

    @property
    def _bar(self) -> Any:
        # there is no public way to read it
        return getattr(shared.total_tqdm, "_tqdm", None)

    def _expect(self, more: int) -> None:
        if self._bar is not None:
            shared.total_tqdm.updateTotal(self._bar.total + more)


class Progress:
    """Shares the bar out by cost, so that the time left follows from the time taken at any point of it.

    The host's bar stands at (job_no + step / steps) / job_count and counts one job per iteration, which it ends itself
    after the picture is decoded; the jobs between are ours, as many as base passes take their time. That is no whole
    number, nor is job_no in a stage: what the sampler's own step counter adds is taken off, which covers one job only.
    Hires fix has a job of its own, so that two of them are a base.
    """

    def __init__(self, plan: Plan, costs: RunCosts, console: Console, host_jobs: int = 1):
        self.plan = plan
        self._console = console
        self._total = len(plan.stages) + 1
        stages = zip(costs.pictures, costs.anchors, costs.stages)
        parts = [cost for stage in stages for cost in stage] + [costs.decoding]
        job = max(costs.base, LEAST_BASE * sum(parts)) / host_jobs
        self._jobs = sum(parts) / job if plan.stages else 0
        # of each part, from the begin of the base's last job on
        self._borders = [1 + sum(parts[:i]) / job for i in range(len(parts) + 1)]
        self._first_job = 0.0
        self._part = 0

    def announce(self, p: Any) -> None:
        """Adds the stages to what the host counts; in a grid or a folder every picture does when its turn comes."""
        self._console.announce(p, shared.state.job_count)
        shared.state.job_count += p.n_iter * self._jobs

    def base_done(self) -> None:
        """Takes note of where the base's last job stands, which is not ended yet."""
        self._first_job = shared.state.job_no
        self._console.ended(of_stages=False)

    def begin(self, stage: StagePlan) -> None:
        """Begins a stage's jobs and names it beside the bar."""
        self._part = PARTS * (stage.number - 1)
        _next_preview_in_stage()
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
        self._console.ended(of_stages=True)

    def _move_within(self, part: int, share: float) -> None:
        begin, end = self._borders[part : part + 2]
        self._move(begin + share * (end - begin))

    def _move(self, jobs: float) -> None:
        state = shared.state
        own = state.sampling_step / state.sampling_steps if state.sampling_steps else 0.0
        state.job_no = self._first_job + jobs - own


def _next_preview_in_stage() -> None:
    """Begins a job without counting anew the steps to the next live preview: a stage may have fewer than lie between.

    What is due by now waits for the stage's own first latent.
    """
    state = shared.state
    since = state.sampling_step + 1 - state.current_image_sampling_step
    # shows the finished picture where previews are asked for at the end only
    state.nextjob()
    state.current_image_sampling_step = -since
    state.current_latent = None


def make_progress(p: Any, plan: Plan, settings: Settings, pictures: bool, passes: Sequence[Pass]) -> Progress:
    """Returns the progress of a request; `pictures` says whether every stage's is decoded.

    `passes` are those that the webui itself makes.
    """
    config = sd_samplers.find_sampler_config(p.sampler_name)
    two_calls = config is not None and config.options.get("second_order", False)
    decoding = functools.partial(timing.decoding_cells, p)
    costs = run_costs(plan, settings, p.steps, two_calls, passes, pictures, decoding)
    hires = getattr(p, "enable_hr", False)
    steps = p.steps + ((p.hr_second_pass_steps or p.steps) if hires else 0)
    of_stages = len(plan.stages) * steps_of_stage(schedule_steps(p.steps, settings), settings.strength)
    return Progress(plan, costs, Console(steps, of_stages), 2 if hires else 1)
