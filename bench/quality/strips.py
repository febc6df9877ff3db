"""Makes the strips in pictures/effects, and the comparison at the top of README: python -m bench.quality.strips.

A *strip* is a row of images that shows the effect of one parameter. If you interrupt the command, the next start makes
only the images that are missing. The JPEG comment of a strip contains its caption, the texts above its images, and all
settings. The JPEG comment of the comparison contains the prompts, scales and configurations. Tests compare these
comments with this module, and the captions with the documentation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.quality.configurations import CONFIGURATIONS, Configuration
from bench.quality.runs import Benchmark, Job, bundled, parser
from bench.quality.ways import Sampling, few_steps
from bench.quality.worlds import COLLAGES
from lib_demofusion.settings.fields import SPECS
from lib_demofusion.settings.presets import DEFAULT_PRESET, PRESETS, TURBO
from lib_demofusion.settings.reading import parse_settings, preset_values
from trial.sheet import contact_sheet

SCALE = 4
FEW_STEPS = 8
"""Number of steps of the images with *Turbo*, the preset for few-step models."""
JPEG = {"quality": 70, "optimize": True, "progressive": True}
"""JPEG options that make small files, because everyone who installs the extension downloads them."""


@dataclass(frozen=True)
class Effect:
    """One parameter at several values. All other parameters have the values of a preset, except for `changes`."""

    field: str
    values: tuple[Any, ...]
    preset: str = "Balanced"
    changes: Mapping[str, Any] = field(default_factory=dict)
    part: str = ""
    """For a parameter of two numbers, the number that differs, such as "tiles" for the first of skip_views."""

    @property
    def name(self) -> str:
        """The name of the strip's file, without the ending."""
        return "_".join([self.field.removesuffix("_views"), *self.part.split()])

    @property
    def caption(self) -> str:
        """The caption in the documentation. It names the parameter, the preset, and the changes to the preset."""
        if self.field == "preset":
            return "The presets"
        changes = [f"{_label(name).lower()} {_in_words(value)}" for name, value in self.changes.items()]
        part = f" ({self.part})" if self.part else ""
        return f"{_label(self.field)}{part}, in {self.preset}" + (f" with {' and '.join(changes)}" if changes else "")

    def settings(self) -> list[dict[str, Any]]:
        """Returns the fields of the API for each value."""
        return [{"preset": self.preset, **self.changes, self.field: value} for value in self.values]

    def configurations(self) -> list[Configuration]:
        """Returns a configuration for each value."""
        return [Configuration(f"{self.field} {value}", settings=s) for value, s in zip(self.values, self.settings())]

    def labels(self) -> list[tuple[str, str]]:
        """Returns the two texts above each image: the value, and in a smaller font the label of the parameter."""
        few = f", few-step model, {FEW_STEPS} steps"
        return [(_in_words(value), _label(self.field) + (few if value == TURBO else "")) for value in self.values]

    def comment(self) -> bytes:
        """Returns the JPEG comment with the caption, the texts above the images, and all settings of each image."""
        requests = [parse_settings({**settings, "scale": SCALE}) for settings in self.settings()]
        values = [{name: getattr(one, name) for name in preset_values("Paper")} for one in requests]
        found = {"caption": self.caption, "labels": self.labels(), "values": values}
        return json.dumps(found, sort_keys=True).encode()


def _label(name: str) -> str:
    return SPECS[name].label.partition(" (")[0]


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value) or "empty"


ONE_STAGE = {"stages": "fewest"}
"""A single stage. With several stages, a later stage would hide the effect of a parameter on an earlier stage."""
STRENGTH = {"denoising_strength": 0.4}

EFFECTS = (
    Effect("preset", tuple(PRESETS)),
    Effect("stages", ("every", "doubling", "fewest")),
    Effect("tile_size", (8, 16, 32)),
    Effect("overlap", (0.0, 0.25, 0.5, 0.75), changes={"feather": 0.0, "skip_views": "0,0.1"}),
    Effect("feather", (0.0, 0.25, 0.5), changes={"skip_views": "0,0.1"}),
    Effect("denoising_strength", (0.2, 0.4, 0.7, 1.0)),
    Effect("hires_steps", (4, 8, 12, 20), "Fast"),
    Effect("upscaler", ("Latent", "Lanczos (pixels)", "Lanczos"), changes=STRENGTH),
    Effect("extra_noise", (0.0, 0.05, 0.1, 0.15), changes=STRENGTH),
    Effect("keep_colors", (False, True)),
    Effect("cosine_scale_1", (0.5, 3, 10), "Paper", ONE_STAGE),
    Effect("cosine_scale_2", (0.3, 1, 10), "Paper", ONE_STAGE),
    Effect("cosine_scale_3", (0.3, 1, 10), "Paper", ONE_STAGE),
    Effect("sigma", (0.1, 0.8, 5), "Paper", ONE_STAGE),
    Effect("skip_views", ("0.5,0", "0.5,0.1", "0.5,0.3", "0.5,0.5"), part="dilated views"),
    Effect("skip_views", ("0,0.1", "0.1,0.1", "0.3,0.1", "0.5,0.1"), part="tiles"),
    Effect("jitter", (False, True), "Paper", {**ONE_STAGE, "overlap": 0.25}),
)
"""The strips, in the order of the documentation."""


COMPARED = {
    "Lanczos": "Base image, Lanczos",
    "Hires fix ESRGAN 0.5": "Hires fix, ESRGAN, 0.5",
    DEFAULT_PRESET: f"DemoFusion, {DEFAULT_PRESET}",
}
"""The configurations in README's comparison, by name, and the titles of their columns."""
SHOWN = ((9, 4), (17, 4), (2, 2))
"""The rows of README's comparison: the number of the prompt and seed, and the scale."""
WHOLE, PART = 120, 220
"""Sides of the whole images and of the parts at 1:1 in README's comparison, in pixels."""


def compared() -> list[Configuration]:
    """Returns the configurations of README's comparison."""
    return [one for name in COMPARED for one in CONFIGURATIONS if one.name == name]


def captions() -> list[str]:
    """Returns the texts above the rows of README's comparison."""
    return [f"{COLLAGES.prompt(number)}, {scale}x" for number, scale in SHOWN]


def comment() -> bytes:
    """Returns the JPEG comment of README's comparison."""
    settings = {one.name: one.fingerprint() for one in compared()}
    return json.dumps({"rows": captions(), "configurations": settings}, sort_keys=True).encode()


def image(benchmark: Benchmark, configuration: Configuration, number: int, scale: int = SCALE) -> Path:
    """Makes an image unless it exists. `number` is the number of the prompt and the seed. Returns the image's file."""
    job = Job(configuration, scale)
    benchmark.run([job], [number])
    return benchmark.store.path(job, number)


def images_of(effect: Effect, number: int, usual: Benchmark, few: Benchmark) -> list[Path]:
    """Makes the images of a strip and returns their files. *Turbo* uses the benchmark `few`, all others use `usual`."""
    benchmarks = [few if settings["preset"] == TURBO else usual for settings in effect.settings()]
    return [image(benchmark, one, number) for benchmark, one in zip(benchmarks, effect.configurations())]


def main() -> None:
    """Makes the missing images, and writes the strips and the comparison."""
    found = parser(__doc__, Path("pictures"))
    found.add_argument("--work", type=Path, default=Path("test-output/strips"), help="folder for single images")
    names = [*(effect.name for effect in EFFECTS), "comparison"]
    found.add_argument("--only", nargs="+", choices=names, metavar="NAME", help="what to make (default: all)")
    found.add_argument("--number", type=int, default=1, help="number of the prompt and seed of the strips")
    args = found.parse_args()
    torch.set_num_threads(args.threads)
    exact = args.precision == "float32"
    usual = bundled(args.work, COLLAGES, Sampling(bfloat16=not exact))
    few = bundled(args.work / "few-steps", COLLAGES, few_steps(FEW_STEPS, not exact))
    (args.out / "effects").mkdir(parents=True, exist_ok=True)
    chosen = args.only or names
    for effect in [one for one in EFFECTS if one.name in chosen]:
        images = images_of(effect, args.number, usual, few)
        columns = [(value, label, [file]) for (value, label), file in zip(effect.labels(), images)]
        strip = contact_sheet(columns, [f"{COLLAGES.prompt(args.number)}, {SCALE}x"])
        strip.save(args.out / "effects" / f"{effect.name}.jpg", comment=effect.comment(), **JPEG)
    if "comparison" in chosen:
        columns = [
            (title, "", [image(usual, one, *shown) for shown in SHOWN])
            for title, one in zip(COMPARED.values(), compared())
        ]
        picture = contact_sheet(columns, captions(), WHOLE, PART)
        picture.save(args.out / "comparison.jpg", comment=comment(), **JPEG)


if __name__ == "__main__":
    main()
