"""Measures the small model at its native size, without an upscaler: python -m bench.quality.model.

The command makes images with fixed seeds for the prompts of both worlds: subjects on photographed backgrounds (the
world "collages"), and subjects on backgrounds of one color (the world "flat"). For each world, it prints the shares of
images with the right subject, with the right background, and with exactly one subject, as JSON.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
from tqdm import tqdm

from bench.quality.ways import Sampling, Studio, batches, few_steps
from bench.quality.worlds import WORLDS
from trial.small_model import LORA, load

AT_ONCE = 16
"""Number of images that the model makes at the same time."""


def judged(studio: Studio, images: np.ndarray) -> dict[str, float]:
    """Returns the shares of images with the right subject, the right ground and exactly one subject."""
    sights = [studio.world.sight(image, number) for number, image in enumerate(images)]
    shares = [(sight.right_subject, sight.right_ground, sight.subjects == 1) for sight in sights]
    return dict(zip(("right subject", "right ground", "one subject"), np.mean(shares, 0).round(3).tolist()))


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=64, help="number of prompts in each world")
    parser.add_argument("--few-steps", type=int, metavar="STEPS", help="use the model with the LoRA for few steps")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sampling = few_steps(args.few_steps, bfloat16=False) if args.few_steps else Sampling(25, bfloat16=False)
    model, found = load(changes=LORA if args.few_steps else None), {}
    for name, world in WORLDS.items():
        studio = Studio(model, sampling, world)
        parts = tqdm(batches(range(args.count), AT_ONCE), desc=name, disable=None)
        found[name] = judged(studio, np.concatenate([studio.decode(studio.base(part)) for part in parts]))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
