"""How many of a sampler's steps a stage runs, and the schedule that gives it as many as the sampler needs."""

from __future__ import annotations

from lib_demofusion.settings.fields import Settings

TWO_NEEDED = frozenset({"sample_dpmpp_2m_sde", "sample_dpmpp_3m_sde", "sample_dpm_fast", "sample_dpm_adaptive"})
"""Sampling functions of k-diffusion that raise in a single step: the former two look for the length of a step that does
not end at zero noise, the others run to the last level but one, which is then the one that they begin at."""

TIMESTEP_SAMPLERS = frozenset({"ddim", "ddim_cfgpp", "plms", "unipc"})
"""Sampling functions of the webui that begin a timestep below the one that it adds noise for, and end at the lowest."""

FEWEST_TIMESTEPS = 4


def schedule_steps(steps: int, settings: Settings) -> int:
    """Returns the length of the stages' schedule, of which they run the last part, for a base pass of `steps` steps."""
    return min(steps, settings.hires_steps or steps)


def steps_of_stage(steps: int, strength: float) -> int:
    """Returns how many of a sampler's steps a stage runs: the last part of the schedule."""
    return max(1, round(steps * strength))


def least_steps(name: str, order: int = 1) -> int:
    """Returns how few steps the sampling function `name` can run; `order` is that of UniPC in the webui's settings."""
    if name in TIMESTEP_SAMPLERS:
        return max(FEWEST_TIMESTEPS, order if name == "unipc" else 1)
    return 2 if name in TWO_NEEDED else 1


def long_enough(steps: int, strength: float, least: int) -> int:
    """Returns the shortest schedule of at least `steps` steps of whose last part `strength` a stage runs `least`.

    So a stage begins at the noise that it would begin at, however few its steps.
    """
    while steps_of_stage(steps, strength) < least:
        steps += 1
    return steps
