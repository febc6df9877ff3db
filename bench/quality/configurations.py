"""Lists the compared ways to a larger image by name. Add new configurations at the end of the list."""

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
    "multidiffusion",
    "mixture",
    "spot",
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
    """The scales at which the row differs from others. At 2x, 1,2,4 is the automatic list."""
    note: str = ""
    flow: FlowRow | None = None
    """How to run the model as a flow model, or None."""

    def settings_at(self, scale: int) -> Settings:
        """Returns the settings of a run."""
        return parse_settings({**self.settings, "enabled": True, "scale": scale})

    def fingerprint(self) -> str:
        """Returns a text that changes when results must be made again."""
        parts = {name: value for name, value in asdict(self).items() if name not in ("name", "scales", "note")}
        if self.flow is None:
            # results from before this field stay valid
            parts.pop("flow")
        return json.dumps(parts, sort_keys=True)


PAPER = "Paper"
"""The row with which all others are compared."""

GATES = {"skip_views": "0.1,0.1"}
ONE_STAGE = {"stages": "fewest"}
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
    Configuration("MultiDiffusion", "multidiffusion", note="local views alone, from pure noise"),
    Configuration("Mixture of Diffusers", "mixture", note="tiles with Gaussian weights, from pure noise"),
    Configuration("SpotDiffusion", "spot", note="shifted tiles without overlap, from pure noise"),
    Configuration(PAPER, note="defaults"),
    Configuration("Balanced", settings=BALANCED, note="the preset"),
    FAST_PRESET,
    Configuration("Turbo", settings=PRESETS["Turbo"], note="the preset for few-step models"),
    Configuration("Gates 0.1", settings=GATES),
    Configuration("Stages 1,2,4", settings={"stages": "doubling"}, scales=(4,)),
    Configuration("One stage", settings=ONE_STAGE, scales=(3, 4)),
    Configuration("Overlap 0.25", settings={"overlap": 0.25}),
    Configuration("Overlap 0", settings={"overlap": 0.0}),
    Configuration("Feather", settings={"feather": 0.25}),
    Configuration("Feather, overlap 0.25", settings={"feather": 0.25, "overlap": 0.25}),
    Configuration("Pixel anchor", settings={"upscaler": "Lanczos (pixels)"}),
    Configuration("Keep colours", settings={"keep_colors": True}),
    Configuration("Balanced, latent anchor", settings={**BALANCED, "upscaler": "Latent"}),
    Configuration("Balanced, pixel anchor", settings={**BALANCED, "upscaler": "Lanczos (pixels)"}),
    Configuration("Balanced, no keep colours", settings={**BALANCED, "keep_colors": False}),
    Configuration("Balanced, no feather", settings={**BALANCED, "feather": 0.0}),
    Configuration("Balanced, no dilated views", settings={**BALANCED, "cosine_scale_2": 10.0}),
    Configuration("Balanced, no extra noise", settings={**BALANCED, "extra_noise": 0.0}),
    Configuration("Balanced, extra noise 0.1", settings={**BALANCED, "extra_noise": 0.1}),
    Configuration("Balanced, strength 0.4", settings={**BALANCED, "denoising_strength": 0.4}),
    Configuration("Balanced, strength 0.7", settings={**BALANCED, "denoising_strength": 0.7}),
    Configuration("Balanced, both views", settings={**BALANCED, "denoising_strength": 0.7, "skip_views": "0,0.1"}),
    Configuration("Fast, pixel anchor", settings={**FAST, "upscaler": "Lanczos (pixels)"}),
    Configuration(
        "Fast, strength 0.4, extra noise 0.1", settings={**FAST, "denoising_strength": 0.4, "extra_noise": 0.1}
    ),
    Configuration("Fast, 20 steps", settings={**FAST, "hires_steps": 0}),
    Configuration("Balanced, latent colors alone", settings=BALANCED, picture_colors=False),
    Configuration("Fast, latent colors alone", settings=FAST, picture_colors=False),
    Configuration("Balanced, all steps", settings={**BALANCED, "hires_steps": 0}),
    Configuration("Balanced, 12 steps", settings={**BALANCED, "hires_steps": 12}),
)


def _flow_rows() -> tuple[Configuration, ...]:
    """Returns every preset with every sampler, shift and choice of weights of a flow model."""
    rows = []
    for preset, values in PRESETS.items():
        for sampler in get_args(Sampler):
            for shift in (3.0, 1.0, 9.0):
                for weights in get_args(Weights):
                    name = f"Flow {preset}, {sampler}, shift {shift:g}, {weights}"
                    rows.append(Configuration(name, settings=values, flow=FlowRow(sampler, shift, weights)))
    return tuple(rows)


FLOW_CONFIGURATIONS = _flow_rows()
"""Configurations that run the model as a flow model. They run only if `--only` names them."""
