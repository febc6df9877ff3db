"""What is compared: ways to a larger picture by name. New levers are added to the list at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lib_demofusion.settings import Settings, parse_settings

Kind = Literal["true", "bicubic", "lanczos", "direct", "hires", "multidiffusion", "demofusion"]


@dataclass(frozen=True, eq=False)
class Configuration:
    """One row of the table. `settings` are fields of Settings; the scale is added to them."""

    name: str
    kind: Kind = "demofusion"
    settings: Mapping[str, Any] = field(default_factory=dict)
    denoise: float = 0.0
    """Denoising strength of hires fix."""
    scales: tuple[int, ...] = (2, 4)
    """Where the row differs from others: 1,2,4 is the automatic list at 2x."""
    note: str = ""

    def settings_at(self, scale: int) -> Settings:
        """The settings of a run; `{scale}` in a text stands for the scale."""
        values = {k: v.format(scale=scale) if isinstance(v, str) else v for k, v in self.settings.items()}
        return parse_settings({**values, "enabled": True, "scale": scale})

    def fingerprint(self) -> str:
        """Text that changes when results must be made anew."""
        parts = {name: value for name, value in asdict(self).items() if name not in ("name", "scales", "note")}
        return json.dumps(parts, sort_keys=True)


PAPER = "Paper"
"""The row that all others are tested against."""

GATES = {"dilated_threshold": 0.1, "local_threshold": 0.1}
ONE_STAGE = {"stages": "{scale}"}
SPARSE = {"stride": 12, "feather": 0.25, **GATES}
PIXEL_STAGE = {**ONE_STAGE, **SPARSE, "anchor": "pixels"}

CONFIGURATIONS: tuple[Configuration, ...] = (
    Configuration("True renderings", "true", note="other scenes of the same captions: what chance alone gives"),
    Configuration("Bicubic", "bicubic"),
    Configuration("Lanczos", "lanczos"),
    Configuration("Direct", "direct", note="sampled at the large size as if it were native"),
    Configuration("Hires fix 0.5", "hires", denoise=0.5, note="the webui's, upscaler Latent"),
    Configuration("Hires fix 0.7", "hires", denoise=0.7, note="the webui's, upscaler Latent"),
    Configuration("MultiDiffusion", "multidiffusion", note="local views alone, from pure noise"),
    Configuration(PAPER, note="defaults"),
    Configuration("Gates 0.1", settings=GATES),
    Configuration("Stages 1,2,4", settings={"stages": "2,4"}, scales=(4,)),
    Configuration("One stage", settings=ONE_STAGE, scales=(4,)),
    Configuration("Stride 3/4", settings={"stride": 12}),
    Configuration("Stride 1", settings={"stride": 16}),
    Configuration("Feather", settings={"feather": 0.25}),
    Configuration("Feather, stride 3/4", settings={"feather": 0.25, "stride": 12}),
    Configuration("Pixel anchor", settings={"anchor": "pixels"}),
    Configuration("Balanced A", settings={"stages": "2,4", "stride": 12, **GATES}, scales=(4,)),
    Configuration("Balanced B", settings={**ONE_STAGE, "stride": 12, "strength": 0.7, **GATES}),
    Configuration("Balanced C", settings={**PIXEL_STAGE, "strength": 0.7}),
    Configuration("Balanced D", settings={**SPARSE, "stages": "2,4", "anchor": "pixels", "strength": 0.7}, scales=(4,)),
    Configuration("Fast A", settings={**ONE_STAGE, "stride": 12, "strength": 0.4, **GATES}),
    Configuration("Fast B", settings={**PIXEL_STAGE, "strength": 0.4}),
    Configuration("Fast C", settings={**PIXEL_STAGE, "strength": 0.4, "cosine_scale_1": 1.0}),
    Configuration("Fast D", settings={**PIXEL_STAGE, "strength": 0.3}),
)
