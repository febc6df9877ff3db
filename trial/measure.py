"""Measures the checkpoint with fixed seeds and prints JSON: python -m trial.measure [--direct 2 4] [--out FOLDER]."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from trial.detect import classify, count_subjects
from trial.sampling import GUIDANCE, ddim, initial_noise, pictures
from trial.scenes import WHOLE, all_labels, caption, random_box, random_scene, render, to_uint8
from trial.small_model import CHECKPOINT, SmallModel, load

NATIVE = 16  # latent cells
HELD_OUT_SEED = 77_000  # no training set uses it


def held_out_views(count: int) -> np.ndarray:
    """Renders whole frames (count, 128, 128, 3) of scenes outside of the training set.

    Every fourth is a zoomed window.
    """
    labels, views = all_labels(), []
    for index in range(count):
        rng = np.random.default_rng((HELD_OUT_SEED, index))
        scene = random_scene(rng, labels[(index * 5) % len(labels)])
        box = random_box(rng, float(rng.choice((2.0, 4.0)))) if index % 4 == 3 else WHOLE
        views.append(render(scene, 128, 128, box))
    return np.stack(views)


def reconstruct(model: SmallModel, views: np.ndarray) -> np.ndarray:
    """Encodes and decodes images (B, H, W, 3) in 0..1."""
    x = torch.from_numpy(views).permute(0, 3, 1, 2).to(model.device) * 2.0 - 1.0
    return pictures(model, model.encode(x)).numpy()


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Computes the peak signal-to-noise ratio in dB of each image of a batch."""
    return -10.0 * np.log10(((a - b) ** 2).mean((1, 2, 3)))


def sample(model: SmallModel, count: int, scale: int, steps: int, guidance: float) -> tuple[list, np.ndarray]:
    """Samples labels and images (count, H, W, 3). All labels occur, and image i has seed i."""
    labels = all_labels()
    chosen = [labels[i * len(labels) // count] for i in range(count)] if count < len(labels) else labels[:count]
    batch, images = max(16 // scale**2, 1), []
    for start in range(0, count, batch):
        part = chosen[start : start + batch]
        noise = initial_noise(list(range(start, start + len(part))), NATIVE * scale, NATIVE * scale)
        latents = ddim(model, [caption(*label) for label in part], noise, steps, guidance)
        images.append(pictures(model, latents).numpy())
    return chosen, np.concatenate(images)


def judge(labels: list, images: np.ndarray) -> dict:
    """Returns the shares of images with the right shape, the right colours and exactly one subject."""
    found = [classify(image) for image in images]
    counts = [count_subjects(image) for image in images]
    right = np.array([[f.shape == s, f.colour == c, f.ground == g] for f, (s, c, g) in zip(found, labels, strict=True)])
    shares = dict(zip(("shape", "subject_colour", "ground_colour"), right.mean(0).round(4).tolist(), strict=True))
    one = float(np.mean([count == 1 for count in counts]))
    histogram = {str(n): times for n, times in sorted(Counter(counts).items())}
    return {**shares, "all_three": float(right.all(1).mean()), "exactly_one": one, "subjects": histogram}


def save_sheet(path: Path, images: np.ndarray, columns: int = 8) -> None:
    """Writes images (B, H, W, 3) side by side."""
    from PIL import Image

    whole_rows = len(images) // columns * columns
    rows = [np.concatenate(list(images[i : i + columns]), 1) for i in range(0, whole_rows, columns)]
    Image.fromarray(to_uint8(np.concatenate(rows))).save(path)


def command_line(text: str, checkpoint: Path) -> argparse.ArgumentParser:
    """Returns the options that the measurements of both models share."""
    options = argparse.ArgumentParser(description=text)
    options.add_argument("--checkpoint", type=Path, default=checkpoint)
    options.add_argument("--count", type=int, default=64)
    options.add_argument("--steps", type=int, default=25)
    options.add_argument("--guidance", type=float, default=GUIDANCE)
    options.add_argument("--direct", type=int, nargs="*", default=[], help="scales sampled directly, 8 prompts each")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--out", type=Path, help="folder for contact sheets")
    return options


def main() -> None:
    """Runs the command line."""
    args = command_line(__doc__.splitlines()[0], CHECKPOINT).parse_args()
    torch.set_num_threads(args.threads)
    model = load(args.checkpoint)
    views = held_out_views(32)
    restored = reconstruct(model, views)
    levels = psnr(restored, views)
    result = {"psnr_mean": round(float(levels.mean()), 2), "psnr_min": round(float(levels.min()), 2)}
    sheets = {"autoencoder": np.concatenate([views[:8], restored[:8]])}
    for scale in (1, *args.direct):
        count = args.count if scale == 1 else min(args.count, 8)
        labels, images = sample(model, count, scale, args.steps, args.guidance)
        result["native" if scale == 1 else f"direct_{scale}x"] = judge(labels, images)
        sheets[f"{scale}x"] = images
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        for name, images in sheets.items():
            save_sheet(args.out / f"{name}.png", images)
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
