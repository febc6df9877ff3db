"""How often a sampler calls its model: told beforehand for all but DPM adaptive, which is estimated as it goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from lib_demofusion.method.step_gate import TWO_CALLS, TWO_CALLS_ANCESTRAL, more_calls_of

CallsAhead = Callable[[int, float], float]
"""Returns about how many model calls follow the one of this number, counted from 0, at this noise level."""

ADAPTIVE_CALLS, ADAPTIVE_RANGE, LOWEST_SIGMA = 60, 6.2, 0.03
"""DPM adaptive's calls in a whole schedule where none was seen yet, the schedule's length in log sigma, and its end."""

EXTRA_CALLS, BEND = 7.5, 1.27
"""Measured on DPM adaptive: by how many calls it exceeds its pace, as its first steps are short wherever it begins and
the last one is cut off; and how its steps grow longer as the noise falls, an exponent."""


def model_calls(name: str, arguments: Mapping[str, Any], second_order: bool = False) -> int | None:
    """Returns how often the sampling function calls its model, told by its own arguments; None if it is not known.

    DPM adaptive chooses the number as it goes. Schedules are taken to end at zero noise.
    """
    if "timesteps" in arguments:
        # UniPC alone calls at the last timestep too, and PLMS twice at the first
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
    """Returns how often a sampler is expected to call its model in so many steps."""
    return max(2 * steps - 1, 0) if two_calls else steps


def calls_ahead(name: str, arguments: Mapping[str, Any], second_order: bool, whole: float) -> CallsAhead:
    """Returns what tells the number of calls to come of the sampling function `name`, from the function's arguments.

    DPM adaptive goes by the image: `whole` is how often it is expected to call its model in a whole schedule.
    """
    total = model_calls(name, arguments, second_order)
    if total is not None:
        return lambda call, level: max(total - 1 - call, 0)

    def of_adaptive(call: int, level: float) -> float:
        return max((whole - EXTRA_CALLS) * _part_ahead(level, arguments) + max(EXTRA_CALLS - call, 0) - 1, 0.0)

    return of_adaptive


def calls_of_whole(calls: float, arguments: Mapping[str, Any]) -> float:
    """Returns how often DPM adaptive would have called its model in a whole schedule, as busy as in a run of `calls`.

    `arguments` are those of the run's sampling function, from sigma_max down to sigma_min.
    """
    return EXTRA_CALLS + max(calls - EXTRA_CALLS, 0.0) / max(_part_ahead(arguments["sigma_max"], arguments), 1e-3)


def _part_ahead(level: float, arguments: Mapping[str, Any]) -> float:
    """Returns the part of a whole schedule's calls that lies below a noise level."""
    end = arguments.get("sigma_min", LOWEST_SIGMA)
    return float(math.pow(max(math.log(level / end), 0.0) / ADAPTIVE_RANGE, BEND))
