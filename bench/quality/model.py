"""Measures the small model at its native size, without any upscaler: python -m bench.quality.model.

The command samples 64 prompts in each world with fixed seeds, and prints the shares of correct images as JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from bench.quality.ways import Sampling, Studio, batches, few_steps
from bench.quality.worlds import WORLDS
from trial.collage.scenes import to_uint8
from trial.small_model import CHECKPOINT, load

COLUMNS, AT_ONCE = 8, 16
"""Number of images in a row of the sheet, and in a batch of the model."""


def judged(studio: Studio, images: np.ndarray) -> dict[str, float]:
    """Returns the shares of images with the right subject, the right ground and exactly one subject."""
    sights = [studio.world.sight(image, number) for number, image in enumerate(images)]
    shares = [(sight.right_subject, sight.right_ground, sight.subjects == 1) for sight in sights]
    return dict(zip(("right subject", "right ground", "one subject"), np.mean(shares, 0).round(3).tolist()))


def sheet(images: np.ndarray) -> Image.Image:
    """Arranges images (N, H, W, 3) in rows. Images that do not fill a row are omitted."""
    count, height, width, _ = images.shape
    rows = images[: count // COLUMNS * COLUMNS].reshape(-1, COLUMNS, height, width, 3).swapaxes(1, 2)
    return Image.fromarray(to_uint8(rows.reshape(-1, COLUMNS * width, 3)))


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--lora", type=Path, help="LoRA to add; the sampler is then LCM without guidance")
    parser.add_argument("--count", type=int, default=64, help="number of prompts in each world")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for contact sheets")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sampling = few_steps(args.steps, bfloat16=False) if args.lora else Sampling(args.steps, bfloat16=False)
    model, found = load(args.checkpoint, changes=args.lora), {}
    for name, world in WORLDS.items():
        studio = Studio(model, sampling, world)
        parts = tqdm(batches(range(args.count), AT_ONCE), desc=name, disable=None)
        images = np.concatenate([studio.decode(studio.base(part)) for part in parts])
        found[name] = judged(studio, images)
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            sheet(images).save(args.out / f"{name}.png")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
