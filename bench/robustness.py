"""Tests the presets with other samplers, steps, guidance and shapes: python -m bench.robustness --webui URL.

The webui must run with --api, the extension and the small model (python try_demofusion.py --webui DIR installs both).
Under every condition it makes images of the collages' prompts: a base, and the result of each preset. After an
interruption, the next start continues after the last finished image.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.host import HostError, Webui
from bench.quality import artefacts, repetition, spectrum
from bench.quality.configurations import PAPER
from bench.quality.denoiser import NATIVE as CELLS
from bench.quality.pictures import as_float, read, write
from bench.quality.table import COLUMNS, Column, Row, cell, make_row
from bench.quality.worlds import COLLAGES
from trial.progress import progress_bar

TITLE = "DemoFusion Hires"
NATIVE = 8 * CELLS
"""Side of a base image in pixels."""
LORA = "<lora:demofusion-collage-lcm:1>"


@dataclass(frozen=True)
class Condition:
    """The parameters of a request besides the prompt. `presets` are those that suit them, beginning with Paper."""

    name: str
    request: Mapping[str, Any] = field(default_factory=dict)
    presets: tuple[str, ...] = (PAPER, "Balanced", "Fast")
    prompt: str = "{}"


CONDITIONS = (
    Condition("DDIM, 20 steps, CFG 3"),
    Condition("Euler a", {"sampler_name": "Euler a"}),
    Condition("DPM++ 2M Karras", {"sampler_name": "DPM++ 2M", "scheduler": "Karras"}),
    Condition("UniPC", {"sampler_name": "UniPC"}),
    Condition("15 steps", {"steps": 15}),
    Condition("40 steps", {"steps": 40}),
    Condition("CFG 2.5", {"cfg_scale": 2.5}),
    Condition("CFG 5", {"cfg_scale": 5}),
    Condition("CFG 9", {"cfg_scale": 9}),
    Condition("portrait 2:3", {"height": NATIVE * 3 // 2}),
    Condition(
        "LCM, 8 steps, CFG 1", {"sampler_name": "LCM", "steps": 8, "cfg_scale": 1}, (PAPER, "Turbo"), "{} " + LORA
    ),
)


SHOWN = ("extra_subjects", "right_subject", "blobs", "structure", "tone", "anisotropy")
DETAIL = Column("detail", "detail", 0)
"""The share of high frequencies relative to that of a true rendering."""
SHOWN_COLUMNS = (*(column for column in COLUMNS if column.name in SHOWN), DETAIL)


def picture_of(webui: Webui, request: Mapping[str, Any], preset: str, scale: int) -> np.ndarray:
    """Requests an image (H, W, 3) in 0..1. Without a preset it is the plain image."""
    scripts = {TITLE: {"args": [{"enabled": True, "preset": preset, "scale": scale}]}} if preset else {}
    answer = webui.call("txt2img", {**request, "alwayson_scripts": scripts, "save_images": False})
    text = json.loads(answer["info"])["infotexts"][0]
    if preset and ("DemoFusion error" in text or "DemoFusion stopped" in text):
        raise SystemExit(f"the webui made no picture of {preset}: {text}")
    image = Image.open(io.BytesIO(base64.b64decode(answer["images"][0])))
    return as_float(np.asarray(image.convert("RGB")))


def request_of(condition: Condition, number: int) -> dict[str, Any]:
    """Returns the request of image `number`, which is also its seed."""
    defaults = {"sampler_name": "DDIM", "steps": 20, "cfg_scale": 3, "width": NATIVE, "height": NATIVE}
    return {**defaults, **condition.request, "prompt": condition.prompt.format(COLLAGES.prompt(number)), "seed": number}


def measured(picture: np.ndarray, base: np.ndarray, number: int) -> dict[str, float]:
    """Returns the figures of an image relative to its base.

    Detail is the share of high frequencies relative to a true rendering.
    """
    sight = COLLAGES.sight(picture, number)
    true = COLLAGES.true_rendering(number, min(picture.shape[:2]), 1)
    return {
        "extra_subjects": sight.subjects - 1,
        "right_subject": float(sight.right_subject),
        "blobs": repetition.excess_blobs(picture, base),
        "structure": artefacts.structure_psnr(picture, base),
        "detail": spectrum.high_frequency_ratio(picture) / spectrum.high_frequency_ratio(true),
        "tone": artefacts.tone_drift(picture, base),
        "anisotropy": artefacts.anisotropy(picture),
    }


class Pictures:
    """Images in a folder. The webui makes those that are missing."""

    def __init__(self, folder: Path, webui: Webui, scale: int):
        self._folder, self._webui, self._scale = folder, webui, scale

    def get(self, condition: Condition, preset: str, number: int) -> np.ndarray:
        """Returns an image (H, W, 3) in 0..1. It is the base if `preset` is empty."""
        name = "".join(c if c.isalnum() else "-" for c in condition.name.lower())
        path = self._folder / f"{self._scale}x" / name / f"{preset.lower() or 'base'}-{number:03d}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, picture_of(self._webui, request_of(condition, number), preset, self._scale))
        return read(path)


def row_of(pictures: Pictures, condition: Condition, preset: str, numbers: Sequence[int]) -> Row:
    """Returns the means of a preset under a condition, with their intervals."""
    found = []
    for number in progress_bar(numbers, desc=f"{condition.name}: {preset}", leave=False):
        base, picture = (pictures.get(condition, name, number) for name in ("", preset))
        found.append({"metrics": measured(picture, base, number), "units": 0.0, "seconds": 0.0})
    return make_row(preset, found, {}, 0)


def rows(pictures: Pictures, conditions: Sequence[Condition], numbers: Sequence[int]) -> Iterator[str]:
    """Yields the lines of the table in Markdown."""
    yield "| " + " | ".join(["condition", "preset", *(column.title for column in SHOWN_COLUMNS)]) + " |"
    yield "|" + " --- |" * (2 + len(SHOWN_COLUMNS))
    for condition in conditions:
        found = [row_of(pictures, condition, preset, numbers) for preset in condition.presets]
        for row in found:
            cells = (cell(row, found[0], column) for column in SHOWN_COLUMNS)
            yield "| " + " | ".join([condition.name, row.name, *cells]) + " |"


def main() -> None:
    """Runs the command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--webui", required=True, metavar="URL")
    options.add_argument("--out", type=Path, default=Path("test-output/robustness"))
    options.add_argument("--count", type=int, default=16, help="prompts, each with a seed of its own")
    options.add_argument("--scale", type=int, default=2)
    options.add_argument("--only", nargs="+", metavar="NAME", choices=[condition.name for condition in CONDITIONS])
    args = options.parse_args()
    chosen = [condition for condition in CONDITIONS if args.only is None or condition.name in args.only]
    pictures = Pictures(args.out, Webui(args.webui), args.scale)
    try:
        for line in rows(pictures, chosen, range(args.count)):
            print(line, flush=True)
    except HostError as problem:
        sys.exit(str(problem))


if __name__ == "__main__":
    main()
