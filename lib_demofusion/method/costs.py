"""Counts the model calls of a sampler, and estimates the cost of a run.

The cost is the number of latent cells that the model evaluates. Time is roughly proportional to the cost. The number of
model calls is exact for all known samplers except DPM adaptive. The fusion skips a path if its weight is too small. The
weights depend on the timestep of a model call, which depends on the sampler and the scheduler. The estimate assumes
that the timesteps are spaced evenly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lib_demofusion.method.plan import Plan, StagePlan
from lib_demofusion.method.sampler_steps import TWO_CALLS, TWO_CALLS_ANCESTRAL, more_calls_of
from lib_demofusion.method.schedule import TIMESTEPS, schedule_steps, steps_of_stage, weights_at
from lib_demofusion.method.views import Size
from lib_demofusion.settings.fields import Settings

CallsAhead = Callable[[int, float], float]
"""A function of the number of a model call (counted from 0) and its noise level. It estimates the number of calls that
follow."""

ADAPTIVE_CALLS, ADAPTIVE_RANGE, LOWEST_SIGMA = 60, 6.2, 0.03
"""Values for DPM adaptive: the assumed number of calls in a whole schedule, and the length and end of this schedule.

The length is in log sigma, and the end is the lowest sigma.
"""

EXTRA_CALLS, BEND = 7.5, 1.27
"""Measured constants for DPM adaptive.

EXTRA_CALLS is the number of additional calls per run, because the first steps are always short, and the last step is
cut off. BEND is an exponent, which describes how the steps grow as the noise level decreases.
"""


def model_calls(name: str, arguments: Mapping[str, Any], second_order: bool = False) -> int | None:
    """Returns the number of model calls of the sampling function with these arguments, or None if it is unknown.

    DPM adaptive chooses the number while it runs. Schedules are assumed to end at zero noise.
    """
    if "timesteps" in arguments:
        # of these samplers, only UniPC also calls the model at the last timestep, and only PLMS makes an extra call
        return len(arguments["timesteps"]) - (name not in ("plms", "unipc"))
    if "sigmas" not in arguments:
        return arguments.get("n")
    steps = len(arguments["sigmas"]) - 1
    if name not in TWO_CALLS_ANCESTRAL:
        more_calls = more_calls_of(name, arguments["sigmas"])
        if more_calls is not None:
            return steps + sum(more_calls(i) for i in range(steps))
    return expected_calls(steps, second_order or name in TWO_CALLS | TWO_CALLS_ANCESTRAL)


def expected_calls(steps: int, two_calls: bool) -> int:
    """Estimates the number of model calls of a sampler in `steps` steps."""
    return max(2 * steps - 1, 0) if two_calls else steps


def calls_ahead(name: str, arguments: Mapping[str, Any], second_order: bool, whole: float) -> CallsAhead:
    """Returns a function that estimates the remaining calls of the sampling function `name`, from its arguments.

    For DPM adaptive, this number depends on the image. `whole` is the number of calls that DPM adaptive is expected to
    make in a whole schedule.
    """
    total = model_calls(name, arguments, second_order)
    if total is not None:
        return lambda call, level: max(total - 1 - call, 0)

    def of_adaptive(call: int, level: float) -> float:
        return max((whole - EXTRA_CALLS) * _part_ahead(level, arguments) + max(EXTRA_CALLS - call, 0) - 1, 0.0)

    return of_adaptive


def calls_of_whole(calls: float, arguments: Mapping[str, Any]) -> float:
    """Extrapolates the number of calls of DPM adaptive from a run of `calls` calls to a whole schedule.

    `arguments` are the arguments of the run's sampling function, which samples from sigma_max down to sigma_min.
    """
    return EXTRA_CALLS + max(calls - EXTRA_CALLS, 0.0) / max(_part_ahead(arguments["sigma_max"], arguments), 1e-3)


def _part_ahead(level: float, arguments: Mapping[str, Any]) -> float:
    """Returns the fraction of a whole schedule's calls that is below a noise level."""
    end = arguments.get("sigma_min", LOWEST_SIGMA)
    return float(math.pow(max(math.log(level / end), 0.0) / ADAPTIVE_RANGE, BEND))


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
