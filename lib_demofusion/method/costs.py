"""Counts the model calls of a sampler, and estimates the cost of a run.

The cost is the number of latent cells that the model evaluates. The time of a run is roughly proportional to its cost.
`model_calls` is exact for all known samplers except DPM adaptive. For DPM2 a and DPM++ 2S a, it is exact only if eta is
at most 1. `run_costs` distinguishes only between samplers with one and with two model calls per step. The number of
cells per call is an estimate, because a model call skips the local views or the dilated views if their weight is too
small. The weights depend on the timestep of the model call. The timesteps depend on the sampler and the scheduler, but
the estimate assumes that they are spaced evenly.
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
"""A function that estimates how many model calls of a sampler follow after a model call.

The arguments are the number of the model call, counted from 0, and the noise level of this call.
"""

ADAPTIVE_CALLS, ADAPTIVE_RANGE, LOWEST_SIGMA = 60, 6.2, 0.03
"""Three numbers for a whole schedule of DPM adaptive with Stable Diffusion.

They are the assumed number of calls, the difference of log sigma between the highest and the lowest sigma, and the
lowest sigma.
"""

EXTRA_CALLS, BEND = 7.5, 1.27
"""Measured constants for DPM adaptive.

EXTRA_CALLS is a number of calls that every run makes, independent of the length of its schedule. The causes are short
steps at the start, and a shortened last step. The number of all other calls from a noise level to the end is
proportional to d ** BEND, where d is the difference of log sigma between this noise level and the end. A BEND above 1
means that the steps grow as the noise decreases.
"""


def model_calls(name: str, arguments: Mapping[str, Any], second_order: bool = False) -> int | None:
    """Returns the number of model calls of the sampling function `name` with these arguments.

    Returns None for DPM adaptive, which chooses the number while it runs. Schedules are assumed to end at zero noise,
    and eta is assumed to be at most 1. Functions that are not known here are assumed to make one call per step. If
    `second_order` is True, they are assumed to make two calls per step, except in the last step.
    """
    if "timesteps" in arguments:
        # DDIM makes no call at the last timestep. PLMS makes no call there either, but a second call in its first step.
        # UniPC makes one call at every timestep.
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
    """Estimates the number of model calls in `steps` steps.

    `two_calls` is True for samplers that call the model twice per step, except in the last step.
    """
    return max(2 * steps - 1, 0) if two_calls else steps


def calls_ahead(name: str, arguments: Mapping[str, Any], second_order: bool, whole: float) -> CallsAhead:
    """Returns a function that estimates the remaining model calls of the sampling function `name`.

    `arguments` are the arguments of the sampling function. `whole` is the expected number of calls of DPM adaptive in a
    whole schedule, which depends on the image. `whole` is not used for other samplers.
    """
    total = model_calls(name, arguments, second_order)
    if total is not None:
        return lambda call, level: max(total - 1 - call, 0)

    def of_adaptive(call: int, level: float) -> float:
        return max((whole - EXTRA_CALLS) * _part_ahead(level, arguments) + max(EXTRA_CALLS - call, 0) - 1, 0.0)

    return of_adaptive


def calls_of_whole(calls: float, arguments: Mapping[str, Any]) -> float:
    """Estimates the number of calls of DPM adaptive in a whole schedule from a run of `calls` calls.

    `arguments` are the arguments of the sampling function in this run. The run begins at `sigma_max` and ends at
    `sigma_min`, so it can be a part of a schedule.
    """
    return EXTRA_CALLS + max(calls - EXTRA_CALLS, 0.0) / max(_part_ahead(arguments["sigma_max"], arguments), 1e-3)


def _part_ahead(level: float, arguments: Mapping[str, Any]) -> float:
    """Estimates how many calls of DPM adaptive are below a noise level, as a fraction of all calls in a whole schedule.

    Both numbers of calls are without EXTRA_CALLS.
    """
    end = arguments.get("sigma_min", LOWEST_SIGMA)
    return float(math.pow(max(math.log(level / end), 0.0) / ADAPTIVE_RANGE, BEND))


Pass = tuple[int, Size]
"""One of the webui's own passes, such as the base pass or hires fix: the number of steps, and the size in cells."""


class RunCosts(NamedTuple):
    """Number of cells that the model evaluates per image.

    `base` is the number for all of the webui's own passes together. `stages` contains the number for each stage.
    """

    base: float
    stages: tuple[float, ...]


def run_costs(
    plan: Plan, settings: Settings, steps: int, two_calls: bool, passes: Sequence[Pass] | None = None
) -> RunCosts:
    """Estimates the costs of a run whose base pass has `steps` steps.

    `passes` lists the webui's own passes. The default is a single base pass of `steps` steps at the size of the base
    image. `two_calls` is True for samplers that call the model twice per step, except in the last step.
    """
    schedule = schedule_steps(steps, settings)
    run = steps_of_stage(schedule, settings.denoising_strength)
    first = (TIMESTEPS - 1) * (1 - (schedule - run) / max(schedule - 1, 1))
    calls = expected_calls(run, two_calls)
    passes = [(steps, plan.base)] if passes is None else passes
    base = sum(expected_calls(number, two_calls) * math.prod(size) for number, size in passes)
    return RunCosts(base, tuple(cells_ahead(stage, settings, first, calls) for stage in plan.stages))


def cells_ahead(stage: StagePlan, settings: Settings, timestep: float, calls: float) -> float:
    """Estimates the number of cells that a stage evaluates in its last `calls` model calls.

    The number is per image. The timesteps of these calls are assumed to be spaced evenly from `timestep` to 0.
    """
    count = math.ceil(calls)
    weights = (weights_at(timestep * (1 - i / max(count - 1, 1)), settings) for i in range(count))
    return sum(stage.cells_at(at.dilated) for at in weights) * calls / max(count, 1)
