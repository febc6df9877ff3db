"""Makes the autoencoder to start with and the latents of a set of scenes: python -m trial.make_latents.

The latents are centred and scaled per channel, by changing the 1x1 convolutions around them. With the usual factor
0.18215 they are then unit Gaussians, and the webui's cheap previews and checks work.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trial.autoencoder import Autoencoder
from trial.design import fresh_model, linear_latents
from trial.progress import progress_bar
from trial.scenes import WHOLE, all_labels, random_box, random_scene, render

SCALE_FACTOR = 0.18215
VIEW = 128
ZOOMS, ZOOM_SHARES = (2.0, 3.0, 4.0, 8.0), (0.35, 0.20, 0.30, 0.15)


def view(seed: int, index: int, zoomed: bool) -> tuple[np.ndarray, int]:
    """Renders image (128, 128, 3) number `index` of a set. Returns it with the index of its label; labels alternate."""
    rng = np.random.default_rng((seed, index, int(zoomed)))
    labels = all_labels()
    scene = random_scene(rng, labels[index % len(labels)])
    box = random_box(rng, float(rng.choice(ZOOMS, p=ZOOM_SHARES))) if zoomed else WHOLE
    return render(scene, VIEW, VIEW, box), index % len(labels)


def encode(seed: int, count: int, zoomed: bool) -> tuple[Tensor, Tensor]:
    """Returns raw latents (count, 4, 16, 16) and label indices (count,)."""
    latents, labels = [], []
    for index in progress_bar(range(count), mininterval=10):
        picture, label = view(seed, index, zoomed)
        latents.append(linear_latents(torch.from_numpy(picture).permute(2, 0, 1)[None] * 2.0 - 1.0))
        labels.append(label)
    return torch.cat(latents), torch.tensor(labels)


@torch.no_grad()
def normalise(model: Autoencoder, mean: Tensor, scale: Tensor) -> None:
    """Moves the mean and scale (4,) of the latents into quant_conv and post_quant_conv, in place."""
    quant, post, z = model.quant_conv, model.post_quant_conv, len(mean)
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= scale[None, :, None, None]
    quant.weight[:z] /= scale[:, None, None, None]
    quant.bias[:z] = (quant.bias[:z] - mean) / scale
    quant.bias[z:] -= 2.0 * scale.log()


def main() -> None:
    """Runs the command line."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=Path("runs/small"))
    options.add_argument("--whole", type=int, default=16384, help="views of the whole frame")
    options.add_argument("--zoomed", type=int, default=8192)
    options.add_argument("--seed", type=int, default=1)
    args = options.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    sets = {name: encode(args.seed, getattr(args, name), name == "zoomed") for name in ("whole", "zoomed")}
    whole = sets["whole"][0]
    mean, scale = whole.mean((0, 2, 3)), SCALE_FACTOR * whole.std((0, 2, 3))
    model = fresh_model()
    normalise(model, mean, scale)
    torch.save(model.state_dict(), args.out / "autoencoder-start.pt")
    data = {f"{name}_x": (x - mean[:, None, None]) / scale[:, None, None] for name, (x, _) in sets.items()}
    data |= {f"{name}_label": label for name, (_, label) in sets.items()}
    torch.save(data, args.out / "latents.pt")


if __name__ == "__main__":
    main()
