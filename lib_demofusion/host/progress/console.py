"""What the webui shows beside its bar: the total of the bar on its console, and the live previews."""

from __future__ import annotations

from typing import Any

from modules import shared

from lib_demofusion.method.plan import Plan
from lib_demofusion.method.stage_steps import schedule_steps, steps_of_stage
from lib_demofusion.settings.fields import Settings


class Console:
    """The total of the webui's bar on the console, which counts the sampler's callbacks.

    Every sampler counts in its own way, and a stage may be cut short: when a part ends, what was done takes the place
    of what was planned. The webui counts `of_base` steps for an iteration, whatever it runs.
    """

    def __init__(self, of_base: int, of_stages: int):
        self._planned = of_base, of_stages
        self._counted: int | None = None

    def announce(self, jobs: int, iterations: int) -> None:
        """Adds the stages' steps; where nobody has told of any, also those of the webui's own `jobs`."""
        if _bar() is None:
            shared.total_tqdm.updateTotal(self._planned[0] * jobs)
        self._counted = getattr(_bar(), "n", None)
        self._replace(-iterations * self._planned[1])

    def base_done(self) -> None:
        """Takes note that the webui's own passes of an iteration are done."""
        self._replace(self._planned[0])

    def stages_done(self) -> None:
        """Takes note that the stages of an iteration are done, or given up."""
        self._replace(self._planned[1])

    def _replace(self, planned: int) -> None:
        bar = _bar()
        if bar is not None and self._counted is not None:
            shared.total_tqdm.updateTotal(bar.total + bar.n - self._counted - planned)
            self._counted = bar.n


def make_console(p: Any, plan: Plan, settings: Settings) -> Console:
    """Returns the total of a request."""
    of_hires = (p.hr_second_pass_steps or p.steps) if getattr(p, "enable_hr", False) else 0
    of_stage = steps_of_stage(schedule_steps(p.steps, settings), settings.denoising_strength)
    return Console(p.steps + of_hires, len(plan.stages) * of_stage)


def _bar() -> Any:
    # there is no public way to read it
    return getattr(shared.total_tqdm, "_tqdm", None)


def begin_job() -> None:
    """Begins a job of the webui's without counting anew the steps to the next preview: a stage may have fewer.

    What is due by now waits for the stage's own first latent.
    """
    state = shared.state
    since = state.sampling_step + 1 - state.current_image_sampling_step
    # shows the finished image where previews are asked for at the end only
    state.nextjob()
    state.current_image_sampling_step, state.current_latent = -since, None
