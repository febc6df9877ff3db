"""Computes the steps of a stage, and a schedule that is long enough for the sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lib_demofusion.method.timesteps import STEPS, flow_level
from lib_demofusion.settings.fields import Settings

TWO_NEEDED = frozenset(
    {"sample_dpmpp_2m_sde", "sample_dpmpp_3m_sde", "sample_dpm_fast", "sample_dpm_adaptive", "sample_unipc"}
)
"""Sampling functions of k-diffusion that raise an error in a single step.

The DPM++ SDE functions need a step that does not end at zero noise. The others run to the last level but one, at which
they would then begin.
"""

TIMESTEP_SAMPLERS = frozenset({"ddim", "ddim_cfgpp", "plms", "unipc"})
"""Sampling functions of the webui that begin one timestep below that of the added noise, and end at the lowest."""

FEWEST_TIMESTEPS = 4


def schedule_steps(steps: int, settings: Settings) -> int:
    """Returns the length of the stages' schedule for a base pass of `steps` steps. A stage runs the last part of it."""
    return min(steps, settings.hires_steps or steps)


def steps_of_stage(steps: int, strength: float) -> int:
    """Returns the number of steps that a stage runs at the end of the schedule."""
    return max(1, round(steps * strength))


def least_steps(name: str, order: int = 1) -> int:
    """Returns the minimum number of steps of the sampling function `name`. `order` is UniPC's order in the webui."""
    if name in TIMESTEP_SAMPLERS:
        return max(FEWEST_TIMESTEPS, order if name == "unipc" else 1)
    return 2 if name in TWO_NEEDED else 1


def long_enough(steps: int, strength: float, least: int) -> int:
    """Returns the shortest schedule of at least `steps` steps whose last part `strength` has at least `least` steps.

    With this, a stage begins at the same noise level even if it has very few steps.
    """
    while steps_of_stage(steps, strength) < least:
        steps += 1
    return steps


@dataclass(frozen=True)
class StageSteps:
    """The schedule of a stage, and the part of it that the stage runs."""

    schedule: int
    """Number of steps in the whole schedule."""
    run: int
    """The stage begins at level `schedule - run` of it."""


Levels = Callable[[int], Sequence[float]]
"""Returns the decreasing noise levels of a schedule with this number of steps, including the final zero."""

LONGEST = 4096
"""The longest schedule that is tried. Its last step begins below the start level of every preset."""


def steps_by_share(steps: int, strength: float, least: int) -> StageSteps:
    """Returns the last part `strength` of a schedule of `steps` steps, lengthened until this part has `least` steps."""
    schedule = long_enough(steps, strength, least)
    return StageSteps(schedule, steps_of_stage(schedule, strength))


def steps_by_level(steps: int, strength: float, least: int, levels: Levels) -> StageSteps:
    """Returns as many steps as `steps_by_share`, but starting at the noise level that corresponds to `strength`.

    This is for flow models. Their shift moves most of a schedule to high levels: its last half begins at 0.75 with a
    shift of 3, and at 0.9 with a shift of 9. The start level has the signal-to-noise ratio of Stable Diffusion's
    timestep 1000 strength. The length of the schedule is chosen so that the last steps begin as close to this level as
    possible. A strength of 1 begins at the start of the schedule.
    """
    run = max(steps_of_stage(steps, strength), least)
    if strength >= 1:
        return StageSteps(run, run)
    wanted, tried = flow_level(STEPS * strength), {}

    def too_high(length: int) -> bool:
        """Tries a schedule. In longer ones, the last `run` steps begin at a lower level."""
        found = levels(length)
        # some schedulers remove levels that are equal after rounding
        start = max(len(found) - 1 - run, 0)
        tried[length] = float(found[start]), start
        return tried[length][0] > wanted

    low, high = run, run
    while too_high(high) and high < LONGEST:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if too_high(middle) else (low, middle)
    schedule = min(tried, key=lambda length: abs(tried[length][0] - wanted))
    return StageSteps(schedule, schedule - tried[schedule][1])
