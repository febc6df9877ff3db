"""Which requests look like those of a few-step model, such as LCM, Lightning, DMD2 and Turbo, and what suits them."""

from __future__ import annotations

from dataclasses import asdict, replace

from lib_demofusion.settings.fields import Settings
from lib_demofusion.settings.presets import BUILT_IN, CHOSEN_FOR_MANY_STEPS, TURBO, Offers
from lib_demofusion.settings.reading import changed_fields, preset_values

FEW_STEPS, LOW_GUIDANCE = 10, 2.0
"""At most so many steps, or at most such a CFG scale; what people use with these models (4 to 8 steps, CFG 1 to 2)."""

MOST_STRENGTH = 0.6
"""With few steps: at 0.5 Balanced and Fast hold the base's structure, at 1 Paper loses it."""


def looks_few_step(steps: int, cfg_scale: float) -> bool:
    """Returns whether a request for so many sampling steps at such a CFG scale looks like one for a few-step model."""
    return steps <= FEW_STEPS or cfg_scale <= LOW_GUIDANCE


def needs_more_steps(settings: Settings, steps: int, cfg_scale: float) -> bool:
    """Returns whether the denoising strength is too high for what looks like a request for a few-step model."""
    return settings.denoising_strength > MOST_STRENGTH and looks_few_step(steps, cfg_scale)


def suited(settings: Settings, steps: int, cfg_scale: float, offers: Offers = BUILT_IN) -> Settings:
    """Returns the settings with the preset Turbo's values, where the request looks like one for a few-step model.

    Only in the place of a preset that was chosen for twenty steps and more, and of which nothing was changed.
    """
    if settings.preset not in CHOSEN_FOR_MANY_STEPS or not looks_few_step(steps, cfg_scale):
        return settings
    if changed_fields(settings.preset, asdict(settings), offers):
        return settings
    return replace(settings, preset=TURBO, **preset_values(TURBO))
