"""The words that a field accepts, the built-in presets, and the choices that users and the webui add.

Also recognizes requests for few-step models, such as LCM, Lightning, DMD2 and Turbo, and chooses a preset for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

EVERY, DOUBLING, FEWEST = STAGE_WORDS = ("every", "doubling", "fewest")
"""Words for lists of stages that depend on the scale.

EVERY has a stage at each whole number below the scale. DOUBLING has stages at 2, 4 and so on. FEWEST has as few stages
as possible, each of which enlarges by up to 4x. All three also have a stage at the scale itself.
"""

LATENT_UPSCALER = "Latent"
LANCZOS = "Lanczos"
"""The image upscaler that exists in every webui."""

IN_PIXELS = " (pixels)"
"""A suffix of an upscaler's name that changes the use of the upscaler (see `Settings`)."""

TURBO = "Turbo"
"""The preset for few-step models."""

_QUICKER = {"stages": FEWEST, "upscaler": LANCZOS, "keep_colors": True}

# The overlaps of Balanced and Fast leave no visible seams. Balanced has six tiles per side at 4x, and Fast has five.
# Both have three at 2x and four at 3x. Tiles are skipped while their weight is below 0.5, because the dilated views
# then determine the composition.
PRESETS: dict[str, dict[str, Any]] = {
    "Paper": {},
    # Stages run six steps. With twice as many steps, images hardly differ.
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
    # Stages run three steps. They begin at such a low noise level that they do not change the composition.
    "Fast": {
        **_QUICKER,
        "denoising_strength": 0.25,
        "hires_steps": 12,
        "extra_noise": 0.15,
        "overlap": 0.2,
        "feather": 0.5,
        "skip_views": "0.5,0.4",
    },
    # Stages have no dilated views, because their steps do not change the composition, and as few tiles as possible. The
    # tiles are slightly larger than the base image, so that they overlap.
    TURBO: {
        **_QUICKER,
        "denoising_strength": 0.3,
        "tile_size": 1.07,
        "overlap": 0.0,
        "feather": 0.125,
        "skip_views": "0,0.5",
    },
}
"""Values of each preset that differ from the defaults of the fields. The defaults are the paper's values."""

CHOSEN_FOR_MANY_STEPS = ("Balanced", "Fast")
"""The default presets that Turbo replaces for a few-step model."""

DEFAULT_PRESET = "Fast"
"""The preset that the panel shows at first, and that applies to requests without a preset."""

FEW_STEPS, LOW_GUIDANCE = 10, 2.0
"""The most steps and the highest CFG scale of a request that counts as one for a few-step model.

Such models typically run with 4 to 8 steps and a CFG scale of 1 to 2.
"""

MOST_STRENGTH = 0.6
"""Maximum denoising strength with few steps.

At a strength of 0.5, stages keep the structure of the base image. At a strength of 1, they change this structure.
"""


@dataclass(frozen=True)
class Choices:
    """Choices that users and the webui add to the built-in choices."""

    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The user's presets by name, already checked by parse_preset."""
    upscalers: tuple[str, ...] = ()
    """The webui's upscalers."""

    @property
    def preset_names(self) -> tuple[str, ...]:
        """The names of the built-in presets, then the names of the user's presets."""
        return (*PRESETS, *(name for name in self.presets if name not in PRESETS))

    @property
    def image_upscalers(self) -> tuple[str, ...]:
        """The names of all image upscalers."""
        return (LANCZOS, *(name for name in self.upscalers if name not in (LANCZOS, LATENT_UPSCALER)))

    def differing(self, preset: str) -> Mapping[str, Any]:
        """Returns the values of a preset that differ from the defaults, or no values if the preset was deleted."""
        return PRESETS[preset] if preset in PRESETS else self.presets.get(preset, {})


BUILT_IN = Choices()
"""No additional choices."""


def looks_few_step(steps: int, cfg_scale: float, distilled: bool = False) -> bool:
    """Returns whether a request with this number of steps and this CFG scale looks like one for a few-step model.

    `distilled` means that the guidance is built into the model, as in Flux.1 dev. The CFG scale then has another
    meaning, so only the number of steps counts.
    """
    return steps <= FEW_STEPS and (distilled or cfg_scale <= LOW_GUIDANCE)


def automatic_preset(default: str, steps: int, cfg_scale: float, distilled: bool = False) -> str:
    """Returns Turbo for a few-step model if the values of `default` were chosen for many steps, else `default`."""
    return TURBO if default in CHOSEN_FOR_MANY_STEPS and looks_few_step(steps, cfg_scale, distilled) else default
