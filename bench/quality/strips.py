"""Makes a strip of images for each parameter, which shows its effect: python -m bench.quality.strips.

After an interruption, the next start continues after the last finished image.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.quality.configurations import Configuration
from bench.quality.runs import Bases, Job, Store, origin, run
from bench.quality.sheet import contact_sheet
from bench.quality.ways import Sampling, Studio
from bench.quality.worlds import COLLAGES, WORLDS
from lib_demofusion.settings.fields import SPECS
from lib_demofusion.settings.presets import PRESETS
from trial.small_model import load

SCALE = 4
BALANCED, FAST = PRESETS["Balanced"], PRESETS["Fast"]
PAPER_ONCE = {"stages": "fewest"}
"""The paper's values with a single stage, so that a later stage does not hide the effect of an earlier one."""
JPEG = {"quality": 70, "optimize": True, "progressive": True}
"""Options of the files. They are small, because everyone who installs the extension downloads them."""


@dataclass(frozen=True)
class Effect:
    """One parameter at several values. All other parameters are those of `base`."""

    field: str
    values: tuple[Any, ...]
    base: Mapping[str, Any] = field(default_factory=lambda: BALANCED)
    file: str = ""
    """Name of the strip, if it is not the field's name."""

    @property
    def name(self) -> str:
        """The name of the strip."""
        return self.file or self.field

    def configurations(self) -> list[Configuration]:
        """Returns a configuration for each value."""
        settings = [{**self.base, self.field: value} for value in self.values]
        return [Configuration(f"{self.field} {value}", settings=s) for value, s in zip(self.values, settings)]

    def labels(self) -> list[tuple[str, str]]:
        """Returns the text above each image: the value, and the parameter's label in small letters below it."""
        return [(_in_words(value), SPECS[self.field].label.partition(" (")[0]) for value in self.values]


def _in_words(value: Any) -> str:
    return (
        {True: "on", False: "off", "": "empty"}.get(value, str(value)) if isinstance(value, (bool, str)) else f"{value}"
    )


EFFECTS = (
    Effect("preset", ("Paper", "Balanced", "Fast"), {}),
    Effect("stages", ("every", "doubling", "fewest")),
    Effect("tile_size", (8, 16, 32)),
    Effect("overlap", (0.0, 0.25, 0.5, 0.75), {**BALANCED, "feather": 0.0, "skip_views": "0,0.1"}),
    Effect("cosine_scale_1", (0.5, 3, 10), PAPER_ONCE),
    Effect("cosine_scale_2", (0.3, 1, 10), PAPER_ONCE),
    Effect("cosine_scale_3", (0.3, 1, 10), PAPER_ONCE),
    Effect("sigma", (0.1, 0.8, 5), PAPER_ONCE),
    Effect("denoising_strength", (0.2, 0.4, 0.7, 1.0)),
    Effect("hires_steps", (4, 8, 12, 20), FAST),
    Effect("jitter", (False, True), {**PAPER_ONCE, "overlap": 0.25}),
    Effect("skip_views", ("0.5,0", "0.5,0.1", "0.5,0.3", "0.5,0.5"), file="skip_dilated_views"),
    Effect("skip_views", ("0,0.1", "0.1,0.1", "0.3,0.1", "0.5,0.1"), file="skip_tiles"),
    Effect("feather", (0.0, 0.25, 0.5), {**BALANCED, "skip_views": "0,0.1"}),
    Effect("upscaler", ("Latent", "Lanczos (pixels)", "Lanczos"), {**BALANCED, "denoising_strength": 0.4}),
    Effect("extra_noise", (0.0, 0.05, 0.1, 0.15), {**BALANCED, "denoising_strength": 0.4}),
    Effect("keep_colors", (False, True)),
)


def main() -> None:
    """Makes missing images and writes a file for each effect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures/effects"), help="folder of the strips")
    parser.add_argument("--work", type=Path, default=Path("test-output/strips"), help="folder of the pictures")
    parser.add_argument("--world", choices=WORLDS, default=COLLAGES.name, help="what the pictures show")
    parser.add_argument("--only", nargs="+", metavar="STRIP", help="names of the strips to make, else all")
    parser.add_argument("--number", type=int, default=1, help="prompt and seed of the strips")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sampling, world = Sampling(), WORLDS[args.world]
    studio, made_by = Studio(load(world.checkpoint), sampling, world), origin([world.checkpoint], sampling, world)
    store = Store(args.work, made_by)
    bases = Bases(studio, store, made_by)
    args.out.mkdir(parents=True, exist_ok=True)
    bases.prepare([args.number])
    for effect in EFFECTS:
        if args.only and effect.name not in args.only:
            continue
        jobs = [Job(configuration, SCALE) for configuration in effect.configurations()]
        run(studio, store, bases, jobs, [args.number])
        files = [[store.path(job, args.number)] for job in jobs]
        columns = [(value, label, file) for (value, label), file in zip(effect.labels(), files)]
        strip = contact_sheet(columns, [world.prompt(args.number)])
        strip.save(args.out / f"{effect.name}.jpg", **JPEG)


if __name__ == "__main__":
    main()
