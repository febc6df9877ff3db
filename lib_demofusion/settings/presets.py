"""Defines the words for the field `stages`, the built-in presets, and the choices that users and the webui add.

Also recognizes requests for few-step models, such as LCM, Lightning, DMD2 and SDXL Turbo, and chooses the preset Turbo
for these requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

EVERY, DOUBLING, FEWEST = STAGE_WORDS = ("every", "doubling", "fewest")
"""Words for the field `stages`. Each word is a rule for the scales of the stages.

EVERY has stages at 2, 3, 4 and so on. DOUBLING has stages at 2, 4, 8 and so on. In both, the last stage has the final
scale, and the scales of all other stages are at least 0.5 below the final scale. FEWEST has as few stages as possible:
each stage makes the previous image at most 4 times as wide and as high.
"""

LATENT_UPSCALER = "Latent"
LANCZOS = "Lanczos"
"""The name of the built-in upscaler of this extension (see `upscaling.enlarged`). Forge Neo itself has no Lanczos."""

IN_PIXELS = " (pixels)"
"""A suffix of an upscaler's name. With it, the anchor is only the enlarged image, encoded again (see `Settings`)."""

TURBO = "Turbo"
"""The preset for few-step models."""

# the values that all presets except Paper share
_QUICKER = {"stages": FEWEST, "upscaler": LANCZOS, "keep_colors": True}

# The overlaps of Balanced and Fast leave no visible seams. At 4x, Balanced has six tiles along each side of the image,
# and Fast has five. At 2x, both have three, and at 3x four. The first number of their `skip_views`, 0.5, skips the
# tiles while their weight is at most 0.5, because the dilated views then determine the composition.
PRESETS: dict[str, dict[str, Any]] = {
    "Paper": {},
    # Every stage runs six steps (0.5 * 12), if the base image has at least 12 steps. With twice as many steps, the
    # images hardly differ.
    "Balanced": {
        **_QUICKER,
        "denoising_strength": 0.5,
        "hires_steps": 12,
        "extra_noise": 0.13,
        "tile_size": 0.875,
        "overlap": 0.14,
        "feather": 0.5,
        "skip_views": "0.5,0.25",
    },
    # Every stage runs three steps (0.25 * 12), if the base image has at least 12 steps. The stages begin at such a low
    # noise level that they do not change the composition.
    "Fast": {
        **_QUICKER,
        "denoising_strength": 0.25,
        "hires_steps": 12,
        "extra_noise": 0.15,
        "overlap": 0.2,
        "feather": 0.5,
        "skip_views": "0.5,0.4",
    },
    # The stages use no dilated views, because they begin at such a low noise level that they do not change the
    # composition. They use as few tiles as possible. The tiles are slightly larger than the base image, so that they
    # overlap.
    TURBO: {
        **_QUICKER,
        "denoising_strength": 0.3,
        "tile_size": 1.07,
        "overlap": 0.0,
        "feather": 0.125,
        "skip_views": "0,0.5",
    },
}
"""The built-in presets by name, each with the values that differ from the defaults of the fields.

The defaults are the paper's values.
"""

CHOSEN_FOR_MANY_STEPS = ("Balanced", "Fast")
"""If one of these presets is the default preset, Turbo can replace it for few-step models (see `automatic_preset`)."""

DEFAULT_PRESET = "Fast"
"""The default preset, unless the user has chosen another default preset in Settings.

The panel shows it at first, and requests without a preset use it.
"""

FEW_STEPS, LOW_GUIDANCE = 10, 2.0
"""A request with at most this number of steps and at most this CFG scale looks like one for a few-step model.

Few-step models typically run with 4 to 8 steps and a CFG scale of 1 to 2.
"""

MOST_STRENGTH = 0.6
"""Maximum denoising strength for few-step models. Above this strength, the panel shows a warning.

With the few steps of these models, stages keep the structure of the base image at a strength of 0.5, but not at 1.
"""


@dataclass(frozen=True)
class Choices:
    """The presets and upscalers that users and the webui add to the built-in ones."""

    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The values of the user's presets, by the name of the preset. `parse_preset` has checked the values."""
    upscalers: tuple[str, ...] = ()
    """The names of the webui's image upscalers."""

    @property
    def preset_names(self) -> tuple[str, ...]:
        """The names of the built-in presets, then the names of the user's presets."""
        return (*PRESETS, *(name for name in self.presets if name not in PRESETS))

    @property
    def image_upscalers(self) -> tuple[str, ...]:
        """The names of all image upscalers, Lanczos first."""
        return (LANCZOS, *(name for name in self.upscalers if name not in (LANCZOS, LATENT_UPSCALER)))

    def differing(self, preset: str) -> Mapping[str, Any]:
        """Returns the values of a preset by field. A field that is not in the result has its default.

        A built-in preset contains only values that differ from the defaults. Returns an empty dict if the preset does
        not exist.
        """
        return PRESETS[preset] if preset in PRESETS else self.presets.get(preset, {})


BUILT_IN = Choices()
"""Only the built-in presets and upscalers."""


def looks_few_step(steps: int, cfg_scale: float, distilled: bool = False) -> bool:
    """Returns whether the steps and the CFG scale of a request are typical of a few-step model.

    `distilled` means that the guidance is built into the model, as in Flux.1 dev. The CFG scale then has another
    meaning, so only the number of steps counts.
    """
    return steps <= FEW_STEPS and (distilled or cfg_scale <= LOW_GUIDANCE)


def automatic_preset(default: str, steps: int, cfg_scale: float, distilled: bool = False) -> str:
    """Returns Turbo if the request looks like one for a few-step model, else the preset `default`.

    Returns `default` also if it is not in CHOSEN_FOR_MANY_STEPS.
    """
    return TURBO if default in CHOSEN_FOR_MANY_STEPS and looks_few_step(steps, cfg_scale, distilled) else default
