"""Trains the detector on renderings and prints its accuracy: python -m trial.collage.train_detector."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from trial.collage.content import Content, captions, installed, shrunk
from trial.collage.detector import SIDE, STRIDE, WEIGHTS, Detector, crops_with_subject, read
from trial.collage.scenes import (
    WHOLE,
    Box,
    Collage,
    Placed,
    extent,
    random_box,
    random_collage,
    render,
    to_uint8,
    visible,
)
from trial.collage.views import FINE
from trial.packing import pack_rows, unpack_rows
from trial.progress import progress_bar

CELLS = SIDE // STRIDE
SMALLEST, LARGEST = 0.13, 0.85
COUNT_SHARES = (0.08, 0.42, 0.2, 0.15, 0.15)
CLOSE_UP_SHARE = 0.3
SHOWN, LARGEST_IN_CROP = 0.7, 1.1
"""In a close-up, a subject counts if this share of it is visible and its size is at most this share of the crop."""
HELD_OUT = 99_000


@dataclass(frozen=True)
class Set:
    """Images uint8 (N, 128, 128, 3), centres (N, 16, 16) in 0..1, subjects (N, 16, 16) or -1, grounds (N,)."""

    pictures: np.ndarray
    centres: np.ndarray
    subjects: np.ndarray
    grounds: np.ndarray


def crowded_scene(content: Content, rng: np.random.Generator) -> Collage:
    """Creates a scene of several subjects of random sizes that overlap only slightly."""
    ground = int(rng.integers(len(content.grounds)))
    scene, placed = Collage(ground, ()), []
    for _ in range(int(rng.choice(len(COUNT_SHARES), p=COUNT_SHARES))):
        for _ in range(8):
            size = float(np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST))))
            label = (int(rng.integers(len(content.subjects))), ground)
            scene = random_collage(content, rng, label, size=size)
            if not any(_overlap(content, scene.subjects[0], other) for other in placed):
                placed.append(scene.subjects[0])
                break
    return Collage(ground, tuple(placed), scene.left, scene.top, scene.mirrored)


def _overlap(content: Content, a: Placed, b: Placed) -> bool:
    (aw, ah), (bw, bh) = extent(content, a), extent(content, b)
    return abs(a.x - b.x) < 0.45 * (aw + bw) and abs(a.y - b.y) < 0.45 * (ah + bh)


def example(content: Content, rng: np.random.Generator) -> tuple[np.ndarray, Collage, Box]:
    """Renders an image (128, 128, 3) in 0..1 with its scene and box: a crowded scene, or a close-up like a 1:1 crop."""
    if rng.random() < CLOSE_UP_SHARE:
        label = (int(rng.integers(len(content.subjects))), int(rng.integers(len(content.grounds))))
        scene, box = random_collage(content, rng, label), random_box(rng, float(rng.choice((2.0, 3.0, 4.0))))
    else:
        scene, box = crowded_scene(content, rng), WHOLE
    return _worn(render(content, scene, SIDE, SIDE, box), rng), scene, box


def _worn(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Applies random blur, light and noise, which a model's images also have."""
    x = torch.from_numpy(picture).permute(2, 0, 1)[None]
    if rng.random() < 0.6:
        factor = rng.uniform(0.3, 1.0)
        x = F.interpolate(x, scale_factor=factor, mode="bilinear", antialias=True)
        x = F.interpolate(x, size=(SIDE, SIDE), mode="bicubic")
    x = x * rng.uniform(0.8, 1.15) + rng.uniform(-0.08, 0.08)
    noise = rng.normal(0.0, rng.uniform(0.0, 0.06), (1, 3, SIDE, SIDE)).astype(np.float32)
    return (x + torch.from_numpy(noise)).clamp(0.0, 1.0)[0].permute(1, 2, 0).numpy()


def make_set(content: Content, seed: int, count: int) -> Set:
    """Renders examples with the expected output of the network."""
    pictures = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    centres = np.zeros((count, CELLS, CELLS), np.float32)
    subjects = np.full((count, CELLS, CELLS), -1, np.int64)
    grounds = np.zeros(count, np.int64)
    across, down = np.meshgrid(np.arange(CELLS) + 0.5, np.arange(CELLS) + 0.5)
    for index in progress_bar(range(count), mininterval=10):
        picture, scene, box = example(content, np.random.default_rng((seed, index)))
        pictures[index], grounds[index] = to_uint8(picture), scene.ground
        for number, placed in enumerate(scene.subjects):
            size = placed.size / (box[2] - box[0])
            if visible(content, scene, number, box) < SHOWN or size > LARGEST_IN_CROP:
                continue
            x = (placed.x - box[0]) / (box[2] - box[0]) * CELLS
            y = (placed.y - box[1]) / (box[3] - box[1]) * CELLS
            radius = 0.6 + 0.9 * size
            bump = np.exp(-((across - x) ** 2 + (down - y) ** 2) / (2 * radius**2))
            centres[index] = np.maximum(centres[index], bump)
            subjects[index][bump > 0.5] = placed.subject
            row, column = min(int(y), CELLS - 1), min(int(x), CELLS - 1)
            subjects[index][row, column] = placed.subject
            centres[index][row, column] = 1.0
    return Set(pictures, centres, subjects, grounds)


def loss_of(model: Detector, x: Tensor, centres: Tensor, subjects: Tensor, grounds: Tensor) -> Tensor:
    """Computes the focal loss of the centres (Law and Deng, arXiv 1808.01244) and the cross entropy of the names."""
    logits, names, ground = model(x)
    p = logits[:, 0].float().sigmoid().clamp(1e-4, 1 - 1e-4)
    hit = (centres >= 1.0).float()
    focal = -hit * (1 - p) ** 2 * p.log() - (1 - hit) * (1 - centres) ** 4 * p**2 * (1 - p).log()
    name = F.cross_entropy(names.float(), subjects, ignore_index=-1) if bool((subjects >= 0).any()) else 0.0
    return focal.sum() / hit.sum().clamp(min=1.0) + name + 0.5 * F.cross_entropy(ground.float(), grounds)


def begin(start: Path | None) -> Detector:
    """Returns the detector to train: new, or with the weights of a file.

    Subjects and grounds that the file does not know come last, and have new weights.
    """
    torch.manual_seed(0)
    model = Detector(*(len(names) for names in captions()))
    if start is not None:
        own = model.state_dict()
        for name, weight in unpack_rows(load_file(start)).items():
            own[name][: len(weight)] = weight.float()
    return model


def train(model: Detector, data: Set, steps: int, batch: int, rate: float) -> Detector:
    """Trains a detector on a set."""
    model = model.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    progress = progress_bar(range(steps), mininterval=10)
    for step in progress:
        chosen = np.random.default_rng((1, step)).integers(len(data.pictures), size=batch)
        x = torch.from_numpy(data.pictures[chosen]).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        targets = (torch.from_numpy(part[chosen]) for part in (data.centres, data.subjects, data.grounds))
        loss = loss_of(model, x.contiguous(memory_format=torch.channels_last), *targets)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval().requires_grad_(False)


def accuracy(content: Content, model: Detector, count: int) -> dict:
    """Measures the detector's accuracy on new renderings: 128 px scenes, crowds, and 1:1 crops of scenes at 4x."""
    single, crowd, false_crops = [], [], []
    labels = content.labels()
    for index in range(count):
        rng = np.random.default_rng((HELD_OUT, index))
        label = labels[index * 7 % len(labels)]
        scene = random_collage(content, rng, label)
        reading = read([render(content, scene, SIDE, SIDE)], model)[0]
        first = reading.subjects[0].subject if reading.subjects else None
        single.append((first == label[0], len(reading.subjects) == 1, reading.ground == label[1]))
        crowded = crowded_scene(content, rng)
        found = read([render(content, crowded, SIDE, SIDE)], model)[0]
        crowd.append(len(found.subjects) == len(crowded.subjects))
        if index % 4 == 0:
            false_crops.append(crops_with_subject(render(content, scene, 4 * SIDE, 4 * SIDE), model))
    right, one, ground = np.mean(single, 0).round(4).tolist()
    result = {
        "subject": right,
        "exactly_one": one,
        "ground": ground,
        "count_of_crowds": round(float(np.mean(crowd)), 4),
    }
    return {**result, "crops_of_one_subject_said_to_show_one": round(float(np.mean(false_crops)), 4)}


def main() -> None:
    """Runs the command line."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--pictures", type=int, default=9000)
    options.add_argument("--steps", type=int, default=2500)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--rate", type=float, default=3e-3)
    options.add_argument("--start", type=Path, help="weights to continue from")
    options.add_argument("--to", type=Path, default=WEIGHTS)
    args = options.parse_args()
    torch.set_num_threads(1)
    full = installed()
    content = shrunk(full, FINE)
    model = train(begin(args.start), make_set(content, 3, args.pictures), args.steps, args.batch, args.rate)
    save_file(pack_rows(model.state_dict()), str(args.to))
    # measure the weights in the precision in which they are stored
    model.load_state_dict(unpack_rows(pack_rows(model.state_dict())))
    sys.stdout.write(json.dumps(accuracy(full, model, 240), indent=1) + "\n")


if __name__ == "__main__":
    main()
