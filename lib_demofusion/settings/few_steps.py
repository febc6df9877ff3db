"""Recognizes requests for few-step models, such as LCM, Lightning, DMD2 and Turbo, and chooses their settings."""

from __future__ import annotations

from dataclasses import asdict, replace

from lib_demofusion.settings.fields import Settings
from lib_demofusion.settings.presets import BUILT_IN, CHOSEN_FOR_MANY_STEPS, TURBO, Offers
from lib_demofusion.settings.reading import changed_fields, preset_values

FEW_STEPS, LOW_GUIDANCE = 10, 2.0
"""At most so many steps, or at most such a CFG scale: people use these models with 4 to 8 steps and CFG 1 to 2."""

MOST_STRENGTH = 0.6
"""With few steps: at 0.5 Balanced and Fast hold the base's structure, at 1 Paper loses it."""


def looks_few_step(steps: int, cfg_scale: float, distilled: bool = False) -> bool:
    """Returns whether a request for so many sampling steps at such a CFG scale looks like one for a few-step model.

    `distilled` says that the model has its guidance built in, as Flux.1 dev has. Such a model runs at CFG 1 with any
    number of steps, so only the number of steps counts.
    """
    return steps <= FEW_STEPS or (cfg_scale <= LOW_GUIDANCE and not distilled)


def needs_more_steps(settings: Settings, steps: int, cfg_scale: float, distilled: bool = False) -> bool:
    """Returns whether the denoising strength is too high for what looks like a request for a few-step model."""
    return settings.denoising_strength > MOST_STRENGTH and looks_few_step(steps, cfg_scale, distilled)


def suited(
    settings: Settings, steps: int, cfg_scale: float, offers: Offers = BUILT_IN, distilled: bool = False
) -> Settings:
    """Returns the settings with the values of the preset Turbo if the request looks like one for a few-step model.

    Only replaces a preset that was chosen for twenty steps and more, and only if no field of it was changed.
    """
    if settings.preset not in CHOSEN_FOR_MANY_STEPS or not looks_few_step(steps, cfg_scale, distilled):
        return settings
    if changed_fields(settings.preset, asdict(settings), offers):
        return settings
    return replace(settings, preset=TURBO, **preset_values(TURBO))
