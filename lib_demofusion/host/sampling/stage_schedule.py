"""Computes the schedule of a stage: the number of steps of the sampler, and how many of them the stage runs."""

from __future__ import annotations

from typing import Any

from modules import shared

from lib_demofusion.method.stage_steps import (
    StageSteps,
    least_steps,
    schedule_steps,
    steps_by_level,
    steps_by_share,
)
from lib_demofusion.settings.fields import Settings


def stage_steps(p: Any, sampler: Any, name: str, settings: Settings, flow: bool) -> StageSteps:
    """Returns the schedule of a stage for the webui's `sampler`, whose function has the name `name`.

    On a flow model (`flow`), the denoising strength determines the noise level at which the stage begins. On other
    models, it determines the share of the steps.
    """
    least = least_steps(name, getattr(shared.opts, "uni_pc_order", 1))
    steps, strength = schedule_steps(p.steps, settings), settings.denoising_strength
    if not flow:
        return steps_by_share(steps, strength, least)

    def levels(length: int) -> list[float]:
        found: list[float] = sampler.get_sigmas(p, length).tolist()
        return found

    return steps_by_level(steps, strength, least, levels)
