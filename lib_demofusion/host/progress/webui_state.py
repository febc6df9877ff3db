"""Updates the webui's own progress: the number of jobs, the bar on the console, and the live previews.

Also computes the number of steps of img2img, and recognizes samplers that call the model twice per step.
"""

from __future__ import annotations

import math
from typing import Any

from modules import sd_samplers, shared

from lib_demofusion.method.plan import Plan
from lib_demofusion.method.schedule import schedule_steps, steps_of_stage
from lib_demofusion.settings.fields import Settings


class JobCount(int):
    """A number of jobs with a fraction. It is an int, but sums and quotients with it use the fraction.

    The webui's bar shows `job_no / job_count`. For example, a stage that takes 3.4 times as long as a job of the webui
    counts as 3.4 jobs. With integers, the bar would move in large jumps. The webui's API returns both numbers, and
    needs integers. `whole` is the integer that the API returns. By default, it is the number without its fraction.
    """

    exact: float

    expected = 0.0
    """The part of the number that is an estimate: the stages of later requests (see the function `announce`)."""

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


def announce(own: float, stages: float) -> None:
    """Adds the stages of a request to the webui's total number of jobs.

    `own` is the number of the webui's own jobs in this request, and `stages` is the number of jobs of its stages.

    An X/Y/Z plot runs one request for each cell, and a batch of files one for each file. The webui adds up its own jobs
    of all these requests in advance. Then it runs one request after the other. This function assumes that all later
    requests have the same stages, so that the bar does not go back whenever a request begins. Each request corrects
    this estimate.
    """
    total = _announced()
    later = max(total - exact(shared.state.job_no) - own, 0.0)
    _set_total(total + stages, stages * later / own)


def withdraw() -> None:
    """Removes the expected stages of later requests from the total. Called for a request without stages."""
    if getattr(shared.state.job_count, "expected", 0.0):
        _set_total(_announced(), 0.0)


def _announced() -> float:
    """Returns the webui's total number of jobs without the stages that are only expected."""
    jobs = shared.state.job_count
    return exact(jobs) - getattr(jobs, "expected", 0.0)


def _set_total(announced: float, expected: float) -> None:
    jobs = JobCount(announced + expected, math.ceil(announced + expected))
    jobs.expected = expected
    shared.state.job_count = jobs


def move_to(done: float) -> None:
    """Moves the webui's bar to the position at which `done` jobs are finished."""
    state = shared.state
    # when the webui draws the bar, it adds the share of steps that its sampler has finished. This share is subtracted
    own = state.sampling_step / state.sampling_steps if state.sampling_steps else 0.0
    state.job_no = JobCount(done - own, int(done))


class Console:
    """Corrects the total of the webui's bar on the console. This bar counts the callbacks of the samplers.

    A request has as many iterations as its "Batch count". The webui plans one callback per step. The actual number may
    differ, because some samplers do not call back once per step, and a stage may end early. When the webui's own passes
    or the stages of an iteration end, the actual number replaces the planned number. `of_base` is the number of
    callbacks that the webui plans for its own passes of an iteration, and `of_stages` is the planned number for the
    stages of an iteration.
    """

    def __init__(self, of_base: int, of_stages: int):
        self._planned = of_base, of_stages
        self._counted: int | None = None

    def announce(self, jobs: int, iterations: int) -> None:
        """Adds the planned callbacks of the stages in all iterations of the request to the total.

        `jobs` is the webui's own number of jobs, in all requests. If the webui has not created the bar yet, creates it
        first, with the callbacks that the webui plans for these jobs.
        """
        if _bar() is None:
            shared.total_tqdm.updateTotal(self._planned[0] * jobs)
        self._counted = getattr(_bar(), "n", None)
        self._replace(-iterations * self._planned[1])

    def base_done(self) -> None:
        """Corrects the total after the webui's own passes of an iteration."""
        self._replace(self._planned[0])

    def stages_done(self) -> None:
        """Corrects the total after the stages of an iteration, complete or not."""
        self._replace(self._planned[1])

    def _replace(self, planned: int) -> None:
        bar = _bar()
        if bar is not None and self._counted is not None:
            shared.total_tqdm.updateTotal(bar.total + bar.n - self._counted - planned)
            self._counted = bar.n


def make_console(p: Any, plan: Plan, settings: Settings) -> Console:
    """Creates the Console of a request. It plans one callback for each step of the webui's passes and of the stages."""
    of_hires = (p.hr_second_pass_steps or p.steps) if getattr(p, "enable_hr", False) else 0
    of_stage = steps_of_stage(schedule_steps(p.steps, settings), settings.denoising_strength)
    return Console(p.steps + of_hires, len(plan.stages) * of_stage)


def _bar() -> Any:
    # the webui has no public attribute for the tqdm object
    return getattr(shared.total_tqdm, "_tqdm", None)


def begin_job() -> None:
    """Begins a job of the webui, and lets the webui show a live preview after the first step of this job.

    Otherwise, a stage with fewer steps than the interval between two previews would have no preview. Later previews
    follow at the webui's interval. With an interval of -1, the webui shows a preview only when a job ends.
    """
    state = shared.state
    state.nextjob()
    interval = getattr(shared.opts, "show_progress_every_n_steps", 1)
    # the latent of the previous image must not be shown as a preview of this stage
    state.current_image_sampling_step, state.current_latent = -max(interval, 0), None


def calls_twice(sampler: str | None) -> bool:
    """Returns whether a sampler calls the model twice in every step except the last one."""
    config = sd_samplers.find_sampler_config(sampler)
    return config is not None and bool(config.options.get("second_order", False))


def img2img_steps(steps: int, strength: float) -> int:
    """Returns how many steps the webui's img2img runs (modules/sd_samplers_common.py, setup_img2img_steps)."""
    # the setting "With img2img, do exactly the amount of steps the slider specifies"
    if getattr(shared.opts, "img2img_fix_steps", False):
        return steps
    return int(min(strength, 0.999) * steps) + 1
