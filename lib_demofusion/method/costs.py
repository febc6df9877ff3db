"""Estimates the cost of a run in latent cells that the model evaluates. Time is roughly proportional to it.

The fusion skips a path if its weight is too small. The weights depend on the timestep of a model call. The timesteps
depend on the sampler and scheduler; the estimate assumes that they fall evenly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from lib_demofusion.method.model_calls import expected_calls
from lib_demofusion.method.plan import Plan, StagePlan
from lib_demofusion.method.schedule import TIMESTEPS, weights_at
from lib_demofusion.method.stage_steps import schedule_steps, steps_of_stage
from lib_demofusion.method.views import Size
from lib_demofusion.settings.fields import Settings

Pass = tuple[int, Size]
"""Number of steps of one of the webui's own passes, and its size in cells."""


class RunCosts(NamedTuple):
    """Number of cells that the webui's own passes and each stage evaluate per image."""

    base: float
    stages: tuple[float, ...]


def run_costs(
    plan: Plan, settings: Settings, steps: int, two_calls: bool, passes: Sequence[Pass] | None = None
) -> RunCosts:
    """Estimates the costs of a run of `steps` steps.

    `passes` lists the webui's own passes. The default is one pass of all steps. `two_calls` is True for samplers that
    call the model twice per step, except in the last step.
    """
    schedule = schedule_steps(steps, settings)
    run = steps_of_stage(schedule, settings.denoising_strength)
    first = (TIMESTEPS - 1) * (1 - (schedule - run) / max(schedule - 1, 1))
    calls = expected_calls(run, two_calls)
    passes = [(steps, plan.base)] if passes is None else passes
    base = sum(expected_calls(number, two_calls) * math.prod(size) for number, size in passes)
    return RunCosts(base, tuple(cells_ahead(stage, settings, first, calls) for stage in plan.stages))


def cells_ahead(stage: StagePlan, settings: Settings, timestep: float, calls: float) -> float:
    """Estimates the number of cells that a stage evaluates in `calls` model calls, starting at `timestep`."""
    count = math.ceil(calls)
    weights = (weights_at(timestep * (1 - i / max(count - 1, 1)), settings) for i in range(count))
    return sum(stage.cells_at(at.dilated) for at in weights) * calls / max(count, 1)
