"""Makes a strip of images for each parameter, which shows its effect: python -m bench.quality.strips.

After an interruption, the next start continues after the last finished image. Every file contains its caption and all
values in its JPEG comment. A test compares them with this module and with the documentation.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.quality.configurations import Configuration
from bench.quality.runs import Bases, Job, Store, origin, run
from bench.quality.ways import Sampling, Studio
from bench.quality.worlds import COLLAGES, WORLDS, World
from lib_demofusion.settings.fields import SPECS
from lib_demofusion.settings.presets import PRESETS, TURBO
from lib_demofusion.settings.reading import parse_settings, preset_values
from trial.sheet import contact_sheet
from trial.small_model import LORA, load

SCALE = 4
FEW_STEPS = 8
"""Steps of the images with the preset for few-step models."""
JPEG = {"quality": 70, "optimize": True, "progressive": True}
"""JPEG options that make small files, because everyone who installs the extension downloads them."""


@dataclass(frozen=True)
class Effect:
    """One parameter at several values. All other parameters are those of a preset, with `changes`."""

    field: str
    values: tuple[Any, ...]
    preset: str = "Balanced"
    changes: Mapping[str, Any] = field(default_factory=dict)
    part: str = ""
    """The part of the parameter that the values change, if there is a strip for each part."""

    @property
    def name(self) -> str:
        """The name of the file."""
        return "_".join([self.field.removesuffix("_views"), *self.part.split()])

    @property
    def caption(self) -> str:
        """The caption in the documentation: the parameter, the preset, and the values that differ from the preset."""
        if self.field == "preset":
            return "The presets"
        changes = [f"{_label(name).lower()} {_in_words(value)}" for name, value in self.changes.items()]
        part = f" ({self.part})" if self.part else ""
        return f"{_label(self.field)}{part}, in {self.preset}" + (f" with {' and '.join(changes)}" if changes else "")

    def settings(self) -> list[dict[str, Any]]:
        """Returns the fields of a request for each value."""
        return [{"preset": self.preset, **self.changes, self.field: value} for value in self.values]

    def configurations(self) -> list[Configuration]:
        """Returns a configuration for each value."""
        return [Configuration(f"{self.field} {value}", settings=s) for value, s in zip(self.values, self.settings())]

    def labels(self) -> list[tuple[str, str]]:
        """Returns the text above each image: the value, and the parameter's label in small letters below it."""
        few = f", few-step model, {FEW_STEPS} steps"
        return [(_in_words(value), _label(self.field) + (few if value == TURBO else "")) for value in self.values]

    def description(self) -> dict[str, Any]:
        """Returns the file's comment: its caption, the texts above the images, and all values of each image."""
        requests = [parse_settings({**settings, "scale": SCALE}) for settings in self.settings()]
        values = [{name: getattr(one, name) for name in preset_values("Paper")} for one in requests]
        return {"caption": self.caption, "labels": [list(pair) for pair in self.labels()], "values": values}

    def comment(self) -> bytes:
        """Returns the JPEG comment of the file."""
        return json.dumps(self.description(), sort_keys=True).encode()


def _label(name: str) -> str:
    return SPECS[name].label.partition(" (")[0]


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value) or "empty"


ONE_STAGE = {"stages": "fewest"}
"""A single stage, so that a later stage does not hide the effect of an earlier one."""
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


class Pictures:
    """Makes the images of one model and sampling."""

    def __init__(self, folder: Path, world: World, sampling: Sampling, lora: Path | None = None):
        made_by = origin([path for path in (world.checkpoint, lora) if path], sampling, world)
        self._studio = Studio(load(world.checkpoint, changes=lora), sampling, world)
        self._store = Store(folder, made_by)
        self._bases = Bases(self._studio, self._store, made_by)

    def files(self, configurations: list[Configuration], number: int, scale: int = SCALE) -> list[Path]:
        """Makes the missing images of prompt and seed `number`, and returns the files of all."""
        self._bases.prepare([number])
        jobs = [Job(configuration, scale) for configuration in configurations]
        run(self._studio, self._store, self._bases, jobs, [number])
        return [self._store.path(job, number) for job in jobs]


def options() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures/effects"), help="folder for the strips")
    parser.add_argument("--work", type=Path, default=Path("test-output/strips"), help="folder for the images")
    parser.add_argument("--world", choices=WORLDS, default=COLLAGES.name, help="kind of prompts")
    parser.add_argument("--only", nargs="+", metavar="STRIP", help="names of the strips to make (default: all)")
    parser.add_argument("--number", type=int, default=1, help="number of the prompt and seed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    return parser.parse_args()


def main() -> None:
    """Makes missing images and writes a file for each effect."""
    args = options()
    torch.set_num_threads(args.threads)
    world, exact = WORLDS[args.world], args.precision == "float32"
    many = Pictures(args.work, world, Sampling(bfloat16=not exact))
    args.out.mkdir(parents=True, exist_ok=True)
    for effect in EFFECTS:
        if args.only and effect.name not in args.only:
            continue
        few = [one for one in effect.configurations() if one.settings["preset"] == TURBO]
        # Turbo is the last preset
        files = many.files([one for one in effect.configurations() if one not in few], args.number)
        if few:
            sampling = Sampling(FEW_STEPS, guidance=1.0, lcm=True, bfloat16=not exact)
            files += Pictures(args.work / "few-steps", world, sampling, LORA).files(few, args.number)
        columns = [(value, label, [file]) for (value, label), file in zip(effect.labels(), files)]
        strip = contact_sheet(columns, [f"{world.prompt(args.number)}, {SCALE}x"])
        strip.save(args.out / f"{effect.name}.jpg", comment=effect.comment(), **JPEG)


if __name__ == "__main__":
    main()
