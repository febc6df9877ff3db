"""Counts how often a sampler calls its model. The number is exact for all samplers except DPM adaptive."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from lib_demofusion.method.step_gate import TWO_CALLS, TWO_CALLS_ANCESTRAL, more_calls_of

CallsAhead = Callable[[int, float], float]
"""Estimates the number of model calls after call `number` (counted from 0) at a noise level."""

ADAPTIVE_CALLS, ADAPTIVE_RANGE, LOWEST_SIGMA = 60, 6.2, 0.03
"""DPM adaptive: default number of calls in a whole schedule, the schedule's length in log sigma, and its end."""

EXTRA_CALLS, BEND = 7.5, 1.27
"""Measured for DPM adaptive.

The first number is the additional calls per run: the first steps are always short, and the last one is cut off. The
second is an exponent for the growth of its steps as the noise level decreases.
"""


def model_calls(name: str, arguments: Mapping[str, Any], second_order: bool = False) -> int | None:
    """Returns how often the sampling function calls its model, from its own arguments, or None if unknown.

    DPM adaptive chooses the number while it runs. Schedules are assumed to end at zero noise.
    """
    if "timesteps" in arguments:
        # only UniPC also calls at the last timestep, and only PLMS calls twice at the first
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
    """Estimates how often a sampler calls its model in a number of steps."""
    return max(2 * steps - 1, 0) if two_calls else steps


def calls_ahead(name: str, arguments: Mapping[str, Any], second_order: bool, whole: float) -> CallsAhead:
    """Returns a function that estimates the remaining calls of the sampling function `name`, from its arguments.

    DPM adaptive depends on the image. `whole` is its expected number of calls in a whole schedule.
    """
    total = model_calls(name, arguments, second_order)
    if total is not None:
        return lambda call, level: max(total - 1 - call, 0)

    def of_adaptive(call: int, level: float) -> float:
        return max((whole - EXTRA_CALLS) * _part_ahead(level, arguments) + max(EXTRA_CALLS - call, 0) - 1, 0.0)

    return of_adaptive


def calls_of_whole(calls: float, arguments: Mapping[str, Any]) -> float:
    """Extrapolates the number of calls of DPM adaptive from a run of `calls` calls to a whole schedule.

    `arguments` are those of the run's sampling function, from sigma_max down to sigma_min.
    """
    return EXTRA_CALLS + max(calls - EXTRA_CALLS, 0.0) / max(_part_ahead(arguments["sigma_max"], arguments), 1e-3)


def _part_ahead(level: float, arguments: Mapping[str, Any]) -> float:
    """Returns the fraction of a whole schedule's calls that is below a noise level."""
    end = arguments.get("sigma_min", LOWEST_SIGMA)
    return float(math.pow(max(math.log(level / end), 0.0) / ADAPTIVE_RANGE, BEND))
