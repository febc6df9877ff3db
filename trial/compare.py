"""Saves the base image, the images of all stages, and a sheet that compares three methods for larger images.

The methods are bicubic enlargement, sampling directly at the large size, and DemoFusion. The command
`python try_demofusion.py --out DIR` runs this module, which uses the miniature webui without opening the page.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import gradio as gr
from modules import jobs, scripts
from PIL import Image

from lib_demofusion.settings.presets import DEFAULT_PRESET
from trial.sheet import contact_sheet
from trial.small_model import GUIDANCE

NATIVE = 128
"""Side in pixels of the base image."""
WHOLE, PART = 160, 320
"""Sides in pixels on the sheet: WHOLE of the reduced whole image, and PART of the part that is shown at 1:1."""


def sample(options: Any, size: int, demofusion: bool) -> Any:
    """Runs a txt2img job of the miniature webui, whose base image has `size` x `size` pixels. Returns its result."""
    print(f"{'DemoFusion' if demofusion else 'Directly at the large size'} ...", flush=True)
    parameters = {
        "prompt": options.prompt,
        "seed": options.seed,
        "steps": options.steps,
        "sampler_name": options.sampler,
        "cfg_scale": GUIDANCE,
        "width": size,
        "height": size,
        "do_not_save_samples": True,
    }
    # on a CPU, the small model is faster with batches of 8 views than with the automatic size of the batches
    settings = {"enabled": demofusion, "scale": options.scale, "return_stages": True, "view_batch": 8}
    return jobs.execute(jobs.make(scripts.scripts_txt2img, False, parameters, [0, settings]))


def main(options: argparse.Namespace) -> None:
    """Makes the images, and writes them and the sheet into the folder `options.out`."""
    set_up_scripts()
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.time()
    result = sample(options, NATIVE, True)
    direct = sample(options, NATIVE * options.scale, False).images[0]
    # the final image comes first, then the base image, then the images of the earlier stages
    final, base, *between = result.images
    bicubic = save(options.out, "bicubic", base.resize(final.size, Image.Resampling.BICUBIC))
    save(options.out, "base", base)
    stages = [save(options.out, f"stage-{number}", image) for number, image in enumerate([*between, final], 1)]
    columns = [
        ("Base image, bicubic", "", [bicubic]),
        ("Sampled at this size", "", [save(options.out, "direct", direct)]),
        (f"DemoFusion, preset {DEFAULT_PRESET}", "", stages[-1:]),
    ]
    caption = f"“{options.prompt}”, {options.scale}x, {options.sampler}, {options.steps} steps, seed {options.seed}"
    contact_sheet(columns, [caption], WHOLE, PART).save(options.out / "comparison.png")
    print(f"{len(list(options.out.glob('*.png')))} images in {options.out}, {time.time() - began:.0f} s")
    print(result.comments, end="")


def set_up_scripts() -> None:
    """Initializes the scripts of txt2img. Otherwise, this happens when the page of the miniature webui is built."""
    with gr.Blocks(analytics_enabled=False):
        scripts.scripts_txt2img.initialize_scripts(False)
        scripts.scripts_txt2img.setup_ui()


def save(folder: Path, name: str, image: Image.Image) -> Path:
    """Writes an image to a file whose name contains the size of the image. Returns the path."""
    path = folder / f"{name}-{image.width}x{image.height}.png"
    image.save(path)
    return path
