"""Lists the compared methods for larger images by name. Add new configurations at the end of the list."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from bench.quality.flow import FlowRow, Sampler, Weights
from lib_demofusion.settings.fields import Settings
from lib_demofusion.settings.presets import PRESETS
from lib_demofusion.settings.reading import parse_settings

Kind = Literal[
    "true",
    "bicubic",
    "lanczos",
    "esrgan",
    "direct",
    "hires",
    "tiles",
    "demofusion",
]


@dataclass(frozen=True, eq=False)
class Configuration:
    """One row of the table. `settings` are fields of Settings, to which the scale is added."""

    name: str
    kind: Kind = "demofusion"
    settings: Mapping[str, Any] = field(default_factory=dict)
    denoise: float = 0.0
    """Denoising strength of hires fix and of tiles."""
    upscaler: Literal["latent", "esrgan"] = "latent"
    """The upscaler of hires fix. Tiles always start from ESRGAN's image."""
    picture_colors: bool = True
    """Whether keep_colors matches the decoded image too, as the webui does, or only the latent."""
    scales: tuple[int, ...] = (2, 3, 4)
    """The scales at which the row is measured. At other scales it would be equal to another row."""
    note: str = ""
    flow: FlowRow | None = None
    """How to run the model as a flow model, or None."""

    def settings_at(self, scale: int) -> Settings:
        """Returns the settings of a run."""
        return parse_settings({**self.settings, "enabled": True, "scale": scale})

    def fingerprint(self) -> str:
        """Returns a text that changes if the results must be made again."""
        parts = {name: value for name, value in asdict(self).items() if name not in ("name", "scales", "note")}
        if self.flow is None:
            # keeps results valid that were made before this field existed
            parts.pop("flow")
        return json.dumps(parts, sort_keys=True)


PAPER = "Paper"
"""The row with which all others are compared."""

BALANCED, FAST = PRESETS["Balanced"], PRESETS["Fast"]

FAST_PRESET = Configuration("Fast", settings=FAST, note="the preset")

CONFIGURATIONS: tuple[Configuration, ...] = (
    Configuration("True renderings", "true", note="other scenes of the same captions: what chance alone gives"),
    Configuration("Bicubic", "bicubic"),
    Configuration("Lanczos", "lanczos"),
    Configuration("ESRGAN", "esrgan", note="@upscalerjs/esrgan-medium"),
    Configuration("Direct", "direct", note="sampled at the large size as if it were native"),
    Configuration("Hires fix 0.5", "hires", denoise=0.5, note="the webui's, upscaler Latent"),
    Configuration("Hires fix 0.7", "hires", denoise=0.7, note="the webui's, upscaler Latent"),
    Configuration("Hires fix ESRGAN 0.3", "hires", denoise=0.3, upscaler="esrgan"),
    Configuration("Hires fix ESRGAN 0.5", "hires", denoise=0.5, upscaler="esrgan"),
    Configuration("Tiles 0.3", "tiles", denoise=0.3, note="in the manner of Ultimate SD Upscale, from ESRGAN"),
    Configuration(PAPER, note="defaults"),
    Configuration("Balanced", settings=BALANCED, note="the preset"),
    FAST_PRESET,
    Configuration("Turbo", settings=PRESETS["Turbo"], note="the preset for few-step models"),
    Configuration("Balanced, latent colors alone", settings=BALANCED, picture_colors=False),
    Configuration("Fast, latent colors alone", settings=FAST, picture_colors=False),
    Configuration("Balanced, all steps", settings={**BALANCED, "hires_steps": 0}, note="the preset before 12 steps"),
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
"""Every preset with the model run as a flow model. These rows run only if `--only` names them."""
