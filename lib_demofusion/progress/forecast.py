"""How many steps a stage runs."""

from __future__ import annotations

from lib_demofusion.settings.fields import Settings


def schedule_steps(steps: int, settings: Settings) -> int:
    """Returns the length of the stages' schedule, of which they run the last part, for a base pass of `steps` steps."""
    return min(steps, settings.stage_steps or steps)


def steps_of_stage(steps: int, strength: float) -> int:
    """Returns how many of a sampler's steps a stage runs: the last part of the schedule."""
    return max(1, round(steps * strength))
