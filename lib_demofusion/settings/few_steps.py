"""Recognizes requests for few-step models, such as LCM, Lightning, DMD2 and Turbo, and chooses a preset for them."""

from __future__ import annotations

from dataclasses import asdict, replace

from lib_demofusion.settings.fields import Settings
from lib_demofusion.settings.presets import BUILT_IN, CHOSEN_FOR_MANY_STEPS, TURBO, Choices
from lib_demofusion.settings.reading import changed_fields, preset_values

FEW_STEPS, LOW_GUIDANCE = 10, 2.0
"""Maximum number of steps and maximum CFG scale of such a request. Typical values are 4 to 8 steps and CFG 1 to 2."""

MOST_STRENGTH = 0.6
"""Maximum denoising strength with few steps. Stages keep the base image's structure at 0.5 and lose it at 1."""


def looks_few_step(steps: int, cfg_scale: float, distilled: bool = False) -> bool:
    """Returns whether a request with this number of steps and this CFG scale looks like one for a few-step model.

    `distilled` means that the guidance is built into the model, as in Flux.1 dev. The CFG scale then has another
    meaning, so only the number of steps counts.
    """
    return steps <= FEW_STEPS and (distilled or cfg_scale <= LOW_GUIDANCE)


def needs_more_steps(settings: Settings, steps: int, cfg_scale: float, distilled: bool = False) -> bool:
    """Returns whether the request looks like one for a few-step model and its denoising strength is too high."""
    return settings.denoising_strength > MOST_STRENGTH and looks_few_step(steps, cfg_scale, distilled)


def automatic_preset(default: str, steps: int, cfg_scale: float, distilled: bool = False) -> str:
    """Returns Turbo for a few-step model if the values of `default` were chosen for many steps, else `default`."""
    return TURBO if default in CHOSEN_FOR_MANY_STEPS and looks_few_step(steps, cfg_scale, distilled) else default


def with_automatic_preset(
    settings: Settings, steps: int, cfg_scale: float, choices: Choices = BUILT_IN, distilled: bool = False
) -> Settings:
    """Returns the settings with the automatic preset's values, or unchanged if a value differs from its preset."""
    preset = automatic_preset(settings.preset, steps, cfg_scale, distilled)
    if preset == settings.preset or changed_fields(settings.preset, asdict(settings), choices):
        return settings
    return replace(settings, preset=preset, **preset_values(preset, choices))
