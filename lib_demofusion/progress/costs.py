"""What a run costs, in latent cells that the model evaluates; time is about proportional to them.

A path of the fusion whose weight is too small is not evaluated, and the weights follow from a model call's timestep.
Which timesteps are to come depends on sampler and scheduler; they are taken to fall evenly.
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
"""Steps of one of the webui's own passes, and its size in cells."""


class RunCosts(NamedTuple):
    """Cells that the webui's own passes and each stage evaluate for one image."""

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
    first = (TIMESTEPS - 1) * (1 - (schedule - run) / max(schedule - 1, 1))
    calls = expected_calls(run, two_calls)
    passes = [(steps, plan.base)] if passes is None else passes
    base = sum(expected_calls(number, two_calls) * math.prod(size) for number, size in passes)
    return RunCosts(base, tuple(cells_ahead(stage, settings, first, calls) for stage in plan.stages))


def cells_ahead(stage: StagePlan, settings: Settings, timestep: float, calls: float) -> float:
    """Returns about how many cells a stage evaluates in `calls` model calls, of which the first is at a timestep."""
    count = math.ceil(calls)
    weights = (weights_at(timestep * (1 - i / max(count - 1, 1)), settings) for i in range(count))
    return sum(stage.cells_at(at.dilated) for at in weights) * calls / max(count, 1)
