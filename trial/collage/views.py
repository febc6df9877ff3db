"""Renders the views that the networks are trained on, and writes them to a file: python -m trial.collage.views."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from trial.collage.content import Content, installed, shrunk
from trial.collage.scenes import WHOLE, random_box, random_collage, render, to_uint8
from trial.progress import progress_bar

VIEW = 128
FINE = 3 * VIEW
"""The number of a photograph's pixels per short side, from which whole views are rendered."""
ZOOMS, ZOOM_SHARES = (2.0, 3.0, 4.0), (0.4, 0.2, 0.4)
KINDS = ("whole", "zoomed")


def view(content: Content, seed: int, index: int, zoomed: bool) -> tuple[np.ndarray, int]:
    """Renders image (128, 128, 3) number `index` of a set. Returns it with the index of its label; labels alternate."""
    rng = np.random.default_rng((seed, index, int(zoomed)))
    labels = content.labels()
    scene = random_collage(content, rng, labels[index % len(labels)])
    box = random_box(rng, float(rng.choice(ZOOMS, p=ZOOM_SHARES))) if zoomed else WHOLE
    return render(content, scene, VIEW, VIEW, box), index % len(labels)


def write(path: Path, content: Content, seed: int, count: int, zoomed: bool) -> None:
    """Writes views as uint8 (count, 128, 128, 3), atomically. The label of view i is i modulo the number of labels."""
    if path.exists():
        return
    partial = path.with_suffix(".partial")
    shape = (count, VIEW, VIEW, 3)
    views = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
    for index in progress_bar(range(count), mininterval=10):
        views[index] = to_uint8(view(content, seed, index, zoomed)[0])
    views.flush()
    partial.replace(path)


def main() -> None:
    """Runs the command line."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=Path("runs/collage"))
    options.add_argument("--whole", type=int, default=19200)
    options.add_argument("--zoomed", type=int, default=7200)
    options.add_argument("--seed", type=int, default=1)
    args = options.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    full = installed()
    write(args.out / "whole.npy", shrunk(full, FINE), args.seed, args.whole, False)
    write(args.out / "zoomed.npy", shrunk(full, FINE * 4), args.seed, args.zoomed, True)


if __name__ == "__main__":
    main()
