"""Measures the small model itself, at its native size: python -m bench.quality.model.

It samples 64 prompts in each world with fixed seeds and prints the detector's results as JSON. To measure larger sizes,
run the row Direct of `python -m bench.quality`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from bench.quality.ways import Sampling, Studio, batches
from bench.quality.worlds import WORLDS
from trial.collage.scenes import to_uint8
from trial.small_model import CHECKPOINT, load

COLUMNS, AT_ONCE = 8, 16
"""Images side by side on the sheet, and images in a batch of the model."""


def judged(studio: Studio, images: np.ndarray) -> dict[str, float]:
    """Returns the shares of images with the right subject, the right ground and exactly one subject."""
    sights = [studio.world.sight(image, number) for number, image in enumerate(images)]
    shares = [(sight.right_subject, sight.right_ground, sight.subjects == 1) for sight in sights]
    return dict(zip(("right subject", "right ground", "one subject"), np.mean(shares, 0).round(3).tolist()))


def sheet(images: np.ndarray) -> Image.Image:
    """Arranges images (N, H, W, 3) in whole rows."""
    count, height, width, _ = images.shape
    rows = images[: count // COLUMNS * COLUMNS].reshape(-1, COLUMNS, height, width, 3).swapaxes(1, 2)
    return Image.fromarray(to_uint8(rows.reshape(-1, COLUMNS * width, 3)))


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--lora", type=Path, help="LoRA to add; the sampler is then LCM without guidance")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for contact sheets")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sampling = Sampling(args.steps, bfloat16=False)
    if args.lora:
        sampling = Sampling(args.steps, guidance=1.0, lcm=True, bfloat16=False)
    model, found = load(args.checkpoint, changes=args.lora), {}
    for name, world in WORLDS.items():
        studio = Studio(model, sampling, world)
        parts = tqdm(batches(args.count, AT_ONCE), desc=name, disable=None)
        images = np.concatenate([studio.decode(studio.base(list(part))) for part in parts])
        found[name] = judged(studio, images)
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            sheet(images).save(args.out / f"{name}.png")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
