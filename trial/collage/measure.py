"""Measures the collages' model with fixed seeds and prints JSON: python -m trial.collage.measure [--out FOLDER]."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from trial.collage.content import Content, captions, ground_kinds, installed
from trial.collage.content import caption as join
from trial.collage.detector import crops_with_subject, read
from trial.collage.scenes import WHOLE, random_box, random_collage, render, to_uint8
from trial.sampling import GUIDANCE, ddim, fresh_noise, initial_noise, lcm, pictures
from trial.small_model import CHECKPOINT, SmallModel, load

NATIVE = 16  # latent cells
HELD_OUT_SEED = 77_000  # no training set uses it
RINGS = 16
"""Number of rings of the spectrum from zero to half a cycle per pixel. The lower half of them is used."""


def labels_for(count: int, kind: str = "collages") -> list[tuple[int, int]]:
    """Returns the labels (subject, ground) of `count` prompts on the grounds of a kind.

    Every subject and ground occurs about equally often.
    """
    subjects, grounds = len(captions()[0]), ground_kinds()[kind]
    return [(i % subjects, grounds[(i * 7 + i // subjects) % len(grounds)]) for i in range(count)]


def prompt(label: tuple[int, int]) -> str:
    """Returns the full caption of a label."""
    subjects, grounds = captions()
    return join(subjects[label[0]], grounds[label[1]])


def held_out_views(content: Content, labels: list[tuple[int, int]], zoomed: bool = False) -> np.ndarray:
    """Renders views (N, 128, 128, 3) of scenes outside of the training set. Zoomed views have a zoom of 2 or 4."""
    views = []
    for index, label in enumerate(labels):
        rng = np.random.default_rng((HELD_OUT_SEED, index))
        scene = random_collage(content, rng, label)
        box = random_box(rng, float(rng.choice((2.0, 4.0)))) if zoomed else WHOLE
        views.append(render(content, scene, 128, 128, box))
    return np.stack(views)


def ring_power(views: np.ndarray) -> np.ndarray:
    """Returns the mean power (RINGS,) of the images' brightness by spatial frequency, under a Hann window.

    The images are (B, H, W, 3).
    """
    brightness = views @ np.array([0.299, 0.587, 0.114])
    brightness = brightness - brightness.mean((1, 2), keepdims=True)
    window = np.hanning(views.shape[1])[:, None] * np.hanning(views.shape[2])
    power = (np.abs(np.fft.fft2(brightness * window)) ** 2).mean(0)
    frequency = np.hypot(np.fft.fftfreq(views.shape[1])[:, None], np.fft.fftfreq(views.shape[2])[None])
    ring = (frequency * 2 * RINGS).astype(int).ravel()
    inside = ring < RINGS
    return np.bincount(ring[inside], power.ravel()[inside], RINGS) / np.bincount(ring[inside], minlength=RINGS)


def reconstruct(model: SmallModel, views: np.ndarray) -> np.ndarray:
    """Encodes and decodes images (B, H, W, 3) in 0..1."""
    x = torch.from_numpy(views).permute(0, 3, 1, 2).to(model.device) * 2.0 - 1.0
    return pictures(model, model.encode(x)).numpy()


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Computes the peak signal-to-noise ratio in dB of each image of a batch."""
    return -10.0 * np.log10(((a - b) ** 2).mean((1, 2, 3)))


def autoencoder_figures(model: SmallModel, views: np.ndarray) -> tuple[dict, np.ndarray]:
    """Returns the figures of the autoencoder and the restored views.

    The figures are the PSNR, and the ratios of the amplitudes to the true ones up to half the highest frequency.
    """
    restored = reconstruct(model, views)
    levels = psnr(restored, views)
    ratio = np.sqrt(ring_power(restored) / ring_power(views))[: RINGS // 2]
    figures = {"psnr_mean": round(float(levels.mean()), 2), "psnr_min": round(float(levels.min()), 2)}
    return {**figures, "spectrum_ratio": ratio.round(3).tolist()}, restored


def color_drift(restored: np.ndarray, views: np.ndarray) -> float:
    """Returns the mean change of the ground's colour in levels of 255, for views (N, H, W, 3) on flat grounds.

    The ground is the most frequent colour of a view, at least 10 pixels away from all others.
    """
    drifts = []
    for made, view in zip(restored, views):
        colours, counts = np.unique(view.reshape(-1, 3), axis=0, return_counts=True)
        flat = ndimage.binary_erosion((view == colours[counts.argmax()]).all(-1), iterations=10, border_value=1)
        drifts.append(np.abs((made - view)[flat].mean(0)).mean() * 255.0)
    return float(np.mean(drifts))


def sample(model: SmallModel, labels: list, scale: int, steps: int, guidance: float) -> np.ndarray:
    """Samples images (N, H, W, 3) of labels. Image i has seed i. Without guidance (1) the sampler is LCM."""
    batch, images = max(16 // scale**2, 1), []
    for start in range(0, len(labels), batch):
        part = labels[start : start + batch]
        seeds = list(range(start, start + len(part)))
        noise = initial_noise(seeds, NATIVE * scale, NATIVE * scale)
        prompts = [prompt(label) for label in part]
        if guidance == 1:
            latents = lcm(model, prompts, noise, fresh_noise(seeds), steps)
        else:
            latents = ddim(model, prompts, noise, steps, guidance)
        images.append(pictures(model, latents).numpy())
    return np.concatenate(images)


def judge(labels: list, images: np.ndarray) -> dict:
    """Returns the shares of images with the right subject, the right ground and exactly one detected subject."""
    readings = [read([image])[0] for image in images]
    subject = [bool(r.subjects) and r.subjects[0].subject == label[0] for r, label in zip(readings, labels)]
    ground = [r.ground == label[1] for r, label in zip(readings, labels)]
    counts = [len(r.subjects) for r in readings]
    result = {"subject": round(float(np.mean(subject)), 4), "ground": round(float(np.mean(ground)), 4)}
    result["exactly_one"] = round(float(np.mean([count == 1 for count in counts])), 4)
    result["subjects"] = {str(n): times for n, times in sorted(Counter(counts).items())}
    if images.shape[1] > 128:
        result["crops_with_a_subject"] = round(float(np.mean([crops_with_subject(image) for image in images])), 4)
    return result


def ten(images: np.ndarray) -> np.ndarray:
    """Arranges ten of 64 images (64, 128, 128, 3) for a person to name.

    They show ten subjects, in two rows, enlarged twice.
    """
    large = images[:64:7].repeat(2, 1).repeat(2, 2)
    return np.concatenate([np.concatenate(list(row), 1) for row in (large[:5], large[5:])])


def save_sheet(path: Path, images: np.ndarray, columns: int = 8) -> None:
    """Writes images (B, H, W, 3) side by side."""
    whole_rows = len(images) // columns * columns
    rows = [np.concatenate(list(images[i : i + columns]), 1) for i in range(0, whole_rows, columns)]
    Image.fromarray(to_uint8(np.concatenate(rows))).save(path)


def main() -> None:
    """Runs the command line."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    options.add_argument("--count", type=int, default=64)
    options.add_argument("--steps", type=int, default=25)
    options.add_argument("--guidance", type=float, default=GUIDANCE)
    options.add_argument("--direct", type=int, nargs="*", default=[], help="scales sampled directly, 8 prompts each")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--out", type=Path, help="folder for contact sheets")
    options.add_argument("--lora", type=Path, help="changes of the weights; with --guidance 1 the sampler is LCM")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    model, content = load(args.checkpoint, changes=args.lora), installed()
    result, sheets = {}, {}
    for kind in ("whole", "zoomed", "flat"):
        labels = labels_for(48, "flat" if kind == "flat" else "collages")
        views = held_out_views(content, labels, kind == "zoomed")
        result[f"autoencoder_{kind}"], restored = autoencoder_figures(model, views)
        sheets[f"autoencoder_{kind}"] = np.concatenate([views[:8], restored[:8], views[8:16], restored[8:16]])
    result["autoencoder_flat"]["color_drift"] = round(color_drift(restored, views), 2)
    for kind in ground_kinds():
        for scale in (1, *args.direct):
            labels = labels_for(args.count if scale == 1 else min(args.count, 8), kind)
            name = f"{kind}_{scale}x"
            sheets[name] = sample(model, labels, scale, args.steps, args.guidance)
            result[name] = judge(labels, sheets[name])
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        for name, images in sheets.items():
            save_sheet(args.out / f"{name}.png", images)
        if args.count >= 64:
            Image.fromarray(to_uint8(ten(sheets["collages_1x"]))).save(args.out / "ten.jpg", quality=78, optimize=True)
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
