"""Lists the configurations: the compared methods for larger images, each with its settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from bench.quality.flow import FlowRow, Sampler, Weights
from lib_demofusion.settings.fields import Settings
from lib_demofusion.settings.presets import PRESETS
from lib_demofusion.settings.reading import parse_settings


@dataclass(frozen=True, eq=False)
class Configuration:
    """One row of the table. `settings` contains values for fields of Settings, except for the scale."""

    name: str
    kind: Literal["true", "lanczos", "esrgan", "hires", "demofusion"] = "demofusion"
    settings: Mapping[str, Any] = field(default_factory=dict)
    denoise: float = 0.0
    """Denoising strength of hires fix."""
    upscaler: Literal["latent", "esrgan"] = "latent"
    """The upscaler of hires fix."""
    picture_colors: bool = True
    """Whether the field keep_colors changes the latent and the decoded image, as in the webui, or only the latent."""
    flow: FlowRow | None = None
    """How to run the model as a flow model. If None, the model runs as usual."""

    @property
    def uses_model(self) -> bool:
        """Whether the configuration evaluates the model."""
        return self.kind in ("hires", "demofusion")

    def settings_at(self, scale: int) -> Settings:
        """Returns the settings of a run at a scale."""
        return parse_settings({**self.settings, "enabled": True, "scale": scale})

    def fingerprint(self) -> str:
        """Returns a text with all values except the name. If the text changes, the images must be made again."""
        parts = {name: value for name, value in asdict(self).items() if name != "name"}
        if self.flow is None:
            # results that were saved before this field existed must stay valid
            parts.pop("flow")
        return json.dumps(parts, sort_keys=True)


PAPER = "Paper"
"""The name of the row with which the table compares all other rows by default."""

BALANCED, FAST = PRESETS["Balanced"], PRESETS["Fast"]

FAST_PRESET = Configuration("Fast", settings=FAST)

CONFIGURATIONS: tuple[Configuration, ...] = (
    Configuration("True renderings", "true"),
    Configuration("Lanczos", "lanczos"),
    Configuration("ESRGAN", "esrgan"),
    Configuration("Hires fix 0.5", "hires", denoise=0.5),
    Configuration("Hires fix ESRGAN 0.3", "hires", denoise=0.3, upscaler="esrgan"),
    Configuration("Hires fix ESRGAN 0.5", "hires", denoise=0.5, upscaler="esrgan"),
    Configuration(PAPER),
    Configuration("Balanced", settings=BALANCED),
    FAST_PRESET,
    Configuration("Turbo", settings=PRESETS["Turbo"]),
    Configuration("Balanced, latent colors alone", settings=BALANCED, picture_colors=False),
    Configuration("Fast, latent colors alone", settings=FAST, picture_colors=False),
)

FLOW_CONFIGURATIONS: tuple[Configuration, ...] = tuple(
    Configuration(
        f"Flow {preset}, {sampler}, shift {shift:g}, {weights}", settings=values, flow=FlowRow(sampler, shift, weights)
    )
    for preset, values in PRESETS.items()
    for sampler in get_args(Sampler)
    for shift in (3.0, 1.0, 9.0)
    for weights in get_args(Weights)
)
"""Configurations that run the small model as a flow model: all presets with all samplers, shifts and weights.

They run only if `--only` names them.
"""
