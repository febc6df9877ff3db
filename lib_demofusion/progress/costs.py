"""What a run costs, in latent cells that the model evaluates, and how much of a stage is done.

Time is about proportional to them. A path whose weight is too small is not evaluated, and its weight follows from the
call's timestep. Which those will be depends on sampler, scheduler and checkpoint; they are taken to fall evenly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lib_demofusion.method.plan import Plan, StagePlan
from lib_demofusion.method.schedule import weights_at
from lib_demofusion.method.stage import StageRun
from lib_demofusion.method.stage_steps import schedule_steps, steps_of_stage
from lib_demofusion.method.step_gate import model_calls
from lib_demofusion.method.views import Size
from lib_demofusion.settings.fields import Settings

ADAPTIVE_CALLS, ADAPTIVE_RANGE = 60, 6.2
"""Calls of DPM adaptive in a whole schedule where none was seen yet, and the schedule's length in log sigma."""

Pass = tuple[int, Size]
"""Steps of one of the webui's own passes, and its size in cells."""


class RunCosts(NamedTuple):
    """Cells that the webui's own passes and each stage evaluate for one picture."""

    base: float
    stages: tuple[float, ...]


def run_costs(
    plan: Plan, settings: Settings, steps: int, two_calls: bool, passes: Sequence[Pass] | None = None
) -> RunCosts:
    """Returns the costs of a run of `steps` steps; `passes` are the webui's own, without them one of all steps.

    `two_calls` says whether the sampler asks its model twice a step, except in the last.
    """
    schedule = schedule_steps(steps, settings)
    run = steps_of_stage(schedule, settings.denoising_strength)
    first, calls = 999 * (1 - (schedule - run) / max(schedule - 1, 1)), _calls(run, two_calls)
    timesteps = [first * (1 - i / max(calls - 1, 1)) for i in range(calls)]
    passes = [(steps, plan.base)] if passes is None else passes
    base = sum(_calls(number, two_calls) * math.prod(size) for number, size in passes)
    return RunCosts(base, tuple(float(sum(call_costs(stage, settings, timesteps))) for stage in plan.stages))


def call_costs(stage: StagePlan, settings: Settings, timesteps: Iterable[float]) -> list[int]:
    """Returns the cells that a stage evaluates in model calls at `timesteps`."""
    return [stage.cells_at(weights_at(t, settings).dilated) for t in timesteps]


def _calls(steps: int, two_calls: bool) -> int:
    return max(2 * steps - 1, 0) if two_calls else steps


def expected_levels(name: str, arguments: Mapping[str, Any], second_order: bool, of_base: int) -> Tensor:
    """Returns about the noise level of every model call of the sampling function `name`, from its arguments.

    DPM adaptive goes by the picture: about as often as in the base pass, `of_base`, for its part of the schedule.
    """
    if "sigmas" in arguments or "timesteps" in arguments:
        # UniPC alone calls at the last timestep too
        levels = (
            arguments["sigmas"][:-1] if "sigmas" in arguments else arguments["timesteps"][name != "unipc" :].flip(0)
        )
        calls = model_calls(name, len(levels), second_order)
        return torch.stack([levels[call * len(levels) // calls] for call in range(calls)])
    high, low = (math.log(arguments[name]) for name in ("sigma_max", "sigma_min"))
    # wherever it begins, its first steps are short
    part = ((high - low) / ADAPTIVE_RANGE) ** 0.87
    return torch.linspace(high, low, arguments.get("n") or max(1, round((of_base or ADAPTIVE_CALLS) * part))).exp()


class StageMeter:
    """Follows the batches of a stage: what it has done are the calls so far, weighted by their cost, and in this call
    the batches so far.
    """

    def __init__(self, run: StageRun, levels: Tensor):
        self.share = 0.0
        """How much of the stage is done, 0 to 1; it never falls."""
        self.rate: float | None = None
        """Seconds for a cell of a view and image. The first call does not count: kernels are chosen in it."""
        self._run, self._call = run, -1
        self._costs = call_costs(run.stage, run.settings, run.space.timesteps(levels))
        self._cells = self._evaluated = self._timed = self._begun = 0.0
        # where the webui evaluates conds and unconds one after the other, a call's batches come twice
        self._rounds = 1.0

    def before_batch(self, cells: float) -> float:
        """Returns the share that is done before a batch of `cells` cells, as a mean over the rows of the call."""
        if self._run.call != self._call:
            self._begin_call()
        self._move(min(self._evaluated / (self._rounds * self._cells), 1.0))
        self._evaluated += cells
        return self.share

    def after_call(self) -> float:
        """Returns the share that is done behind a call, of which the sampler's callback tells."""
        self._move(1.0)
        return self.share

    def _begin_call(self) -> None:
        run, now = self._run, time.perf_counter()
        if self._call == 0:
            self._begun = now
        elif self._call > 0:
            # from call to call: a card is handed work ahead of time, and only the next call waits for it
            self._timed += self._cells * len(run.anchor)
            self.rate = (now - self._begun) / self._timed
        if self._call >= 0:
            self._rounds = max(self._evaluated / self._cells, 1.0)
        self._call, self._evaluated = run.call, 0.0
        self._cells = run.stage.cells_at(run.weights.dilated)

    def _move(self, within: float) -> None:
        call = min(self._call, len(self._costs) - 1)
        done = (sum(self._costs[:call]) + within * self._costs[call]) / sum(self._costs)
        self.share = min(max(self.share, done), 1.0)
