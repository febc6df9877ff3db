"""The built-in presets, and what users and the webui add to the choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lib_demofusion.settings.texts import FEWEST

LATENT_UPSCALER = "Latent"
LANCZOS = "Lanczos"
"""The upscaler of images that is always there."""

IN_PIXELS = " (pixels)"
"""Behind an upscaler's name: see Settings.upscaler."""

TURBO = "Turbo"
"""The preset for few-step models."""

_QUICKER = {"stages": FEWEST, "upscaler": LANCZOS, "keep_colors": True}

# overlaps that show no seam at 4x (six and five tiles a side), while at 2x three a side do and at 3x four; the tiles
# below a half: there the dilated views alone decide what is where
PRESETS: dict[str, dict[str, Any]] = {
    "Paper": {},
    "Balanced": {
        **_QUICKER,
        "denoising_strength": 0.5,
        "extra_noise": 0.13,
        "tile_size": 0.875,
        "overlap": 0.14,
        "feather": 0.5,
        "skip_views": "0.5,0.25",
    },
    # three steps, so late that what is where is decided already
    "Fast": {
        **_QUICKER,
        "denoising_strength": 0.25,
        "hires_steps": 12,
        "extra_noise": 0.15,
        "overlap": 0.2,
        "feather": 0.5,
        "skip_views": "0.5,0.4",
    },
    # without the dilated views for the same reason; the fewest tiles that cover the image, so much larger than the base
    # image that they overlap
    TURBO: {
        **_QUICKER,
        "denoising_strength": 0.3,
        "tile_size": 1.07,
        "overlap": 0.0,
        "feather": 0.125,
        "skip_views": "0,0.5",
    },
}
"""Values by preset name that differ from the fields' own, which are the paper's."""

CHOSEN_FOR_MANY_STEPS = ("Balanced", "Fast")
"""The default presets that Turbo replaces for a few-step model."""

DEFAULT_PRESET = "Balanced"
"""What the panel opens with, and what a request gets that names none."""


@dataclass(frozen=True)
class Offers:
    """What may be chosen besides what is built in."""

    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The user's, checked by parse_preset, by name."""
    upscalers: tuple[str, ...] = ()
    """The webui's."""

    @property
    def preset_names(self) -> tuple[str, ...]:
        """The built-in names, then the user's."""
        return (*PRESETS, *(name for name in self.presets if name not in PRESETS))

    @property
    def image_upscalers(self) -> tuple[str, ...]:
        """The upscalers that an image may be enlarged by."""
        return (LANCZOS, *(name for name in self.upscalers if name not in (LANCZOS, LATENT_UPSCALER)))

    def differing(self, preset: str) -> Mapping[str, Any]:
        """Returns the values of a preset that differ from the defaults; none where it is gone by now."""
        return PRESETS[preset] if preset in PRESETS else self.presets.get(preset, {})


BUILT_IN = Offers()
"""Nothing besides."""
