"""Renders the training images and encodes them with the bundled encoder: python -m trial.collage.latents."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from trial.collage.content import Content, installed, shrunk
from trial.collage.scenes import WHOLE, random_box, random_collage, render
from trial.progress import progress_bar
from trial.small_model import CHECKPOINT, SmallModel, load

VIEW = 128
FINE = {"whole": 3 * VIEW, "zoomed": 12 * VIEW}
"""Photographs are shrunk until a scene's side spans this many of their pixels. Fewer pixels render faster."""
ZOOMS, ZOOM_SHARES = (2.0, 3.0, 4.0), (0.4, 0.2, 0.4)
BATCH = 32


def view(content: Content, seed: int, index: int, zoomed: bool) -> np.ndarray:
    """Renders image (128, 128, 3) number `index` of a set. Its label is `index` modulo the number of labels."""
    rng = np.random.default_rng((seed, index, int(zoomed)))
    labels = content.labels()
    scene = random_collage(content, rng, labels[index % len(labels)])
    box = random_box(rng, float(rng.choice(ZOOMS, p=ZOOM_SHARES))) if zoomed else WHOLE
    return render(content, scene, VIEW, VIEW, box)


def encoded(model: SmallModel, content: Content, seed: int, kind: str, count: int) -> dict[str, torch.Tensor]:
    """Returns unscaled latents (count, 4, 16, 16) and labels (count,) of one kind of views."""
    latents = []
    for start in progress_bar(range(0, count, BATCH), desc=kind, mininterval=10):
        numbers = range(start, min(start + BATCH, count))
        views = np.stack([view(content, seed, number, kind == "zoomed") for number in numbers])
        x = torch.from_numpy(views).permute(0, 3, 1, 2) * 2.0 - 1.0
        with torch.no_grad():
            latents.append(model.vae.moments(x.contiguous(memory_format=torch.channels_last))[0])
    return {f"{kind}_x": torch.cat(latents), f"{kind}_label": torch.arange(count) % len(content.labels())}


def main() -> None:
    """Runs the command line."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, default=Path("runs/collage"))
    options.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    options.add_argument("--whole", type=int, default=19200)
    options.add_argument("--zoomed", type=int, default=7200)
    options.add_argument("--seed", type=int, default=1)
    args = options.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    model = load(args.checkpoint)
    data = {}
    for kind, side in FINE.items():
        data |= encoded(model, shrunk(installed(), side), args.seed, kind, getattr(args, kind))
    torch.save(data, args.out / "latents.pt")


if __name__ == "__main__":
    main()
