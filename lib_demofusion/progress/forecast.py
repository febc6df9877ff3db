"""What a run will cost, call by call, before it begins.

A path whose weight is too small is not evaluated, and its weight follows from the model's timestep: where the timesteps
of the calls are known, so is the number of evaluations. A run knows them from its sampler (`sampler_calls`). The panel
does not, for they depend on the checkpoint's noise schedule, the scheduler and settings of the webui; it can say what
the model's own schedule would give, whose timesteps fall evenly (`even_timesteps`). Without thresholds that number is
right for every schedule that ends at the model's lowest noise level, for there alone the dilated path has no weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from lib_demofusion.method.plan import Plan, StagePlan
from lib_demofusion.method.schedule import weights_at
from lib_demofusion.method.stage_steps import steps_of_stage
from lib_demofusion.settings.fields import Settings

LAST_TIMESTEP = 999
"""The highest timestep of a model; its lowest is 0."""


def schedule_steps(steps: int, settings: Settings) -> int:
    """Returns the length of the stages' schedule, of which they run the last part, for a base pass of `steps` steps."""
    return min(steps, settings.stage_steps or steps)


def even_timesteps(steps: int, strength: float = 1.0, two_calls: bool = False) -> list[float]:
    """Returns the timesteps of a stage's model calls where those of the steps fall evenly from 999 to 0.

    A sampler of two calls a step makes the second one halfway to the next step's, and none in the last step.
    """
    every = [LAST_TIMESTEP * (1 - i / max(steps - 1, 1)) for i in range(steps)]
    kept = every[steps - steps_of_stage(steps, strength) :]
    if not two_calls:
        return kept
    return [t for pair in pairwise(kept) for t in (pair[0], sum(pair) / 2)] + kept[-1:]


def evaluations(stage: StagePlan, timesteps: Iterable[float], settings: Settings) -> int:
    """Returns how many views a stage evaluates in model calls at `timesteps`."""
    return sum(stage.evaluations_at(weights_at(t, settings).dilated) for t in timesteps)


def plan_evaluations(plan: Plan, timesteps: Sequence[float], settings: Settings) -> int:
    """Returns how many views all stages evaluate, each of them in model calls at `timesteps`."""
    return sum(evaluations(stage, timesteps, settings) for stage in plan.stages)


def call_cells(stage: StagePlan, timesteps: Iterable[float], settings: Settings) -> list[int]:
    """Returns how many latent cells each of a stage's model calls evaluates, what its time is proportional to."""
    return [stage.cells_at(weights_at(t, settings).dilated) for t in timesteps]
