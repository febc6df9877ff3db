"""Makes the latents of the rendered views, and the autoencoder with which the decoder's training starts.

python -m trial.collage.make_latents, after views and train_encoder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from trial.autoencoder import Autoencoder
from trial.collage.model import AUTOENCODER
from trial.collage.train_encoder import Pair
from trial.collage.views import KINDS
from trial.design import LOG_VARIANCE, design_decoder
from trial.make_latents import SCALE_FACTOR, normalise

BATCH = 32


@torch.no_grad()
def starting_autoencoder(pair: Pair) -> Autoencoder:
    """The trained encoder before a decoder that smoothly enlarges the thumbnail read off the latents."""
    model = Autoencoder(AUTOENCODER)
    model.encoder.load_state_dict(pair.encoder.state_dict())
    model.quant_conv.load_state_dict(pair.quant_conv.state_dict())
    model.quant_conv.weight[4:] = 0.0
    model.quant_conv.bias[4:] = LOG_VARIANCE
    model.post_quant_conv.weight.copy_(torch.eye(4)[:, :, None, None])
    model.post_quant_conv.bias.zero_()
    design_decoder(model, pair.thumbnail.weight[:, :, 0, 0], pair.thumbnail.bias)
    return model


@torch.no_grad()
def encode(pair: Pair, views: np.ndarray) -> Tensor:
    """Raw latents (N, 4, 16, 16) of uint8 views (N, 128, 128, 3)."""
    latents = []
    for start in tqdm(range(0, len(views), BATCH), mininterval=10):
        x = torch.from_numpy(views[start : start + BATCH]).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(pair.latents(x.contiguous(memory_format=torch.channels_last)).float())
    return torch.cat(latents)


def main() -> None:
    """Command line."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=Path("runs/collage"))
    options.add_argument("--encoder", type=Path, help="state of train_encoder, if not in --out")
    options.add_argument("--labels", type=int, default=240, help="number of captions, by which labels take turns")
    options.add_argument(
        "--share", type=float, default=1.0, help="share of the views that is encoded, from the first on"
    )
    args = options.parse_args()
    torch.set_num_threads(1)
    pair = Pair()
    state = torch.load(args.encoder or args.out / "encoder.pt", weights_only=True, map_location="cpu")
    pair.load_state_dict(state["average"])
    pair = pair.eval().to(memory_format=torch.channels_last)
    views = {kind: np.load(args.out / f"{kind}.npy", mmap_mode="r") for kind in KINDS}
    sets = {kind: encode(pair, pictures[: round(args.share * len(pictures))]) for kind, pictures in views.items()}
    whole = sets["whole"]
    mean, scale = whole.mean((0, 2, 3)), SCALE_FACTOR * whole.std((0, 2, 3))
    model = starting_autoencoder(pair)
    normalise(model, mean, scale)
    torch.save(model.state_dict(), args.out / "autoencoder-start.pt")
    data = {f"{kind}_x": (x - mean[:, None, None]) / scale[:, None, None] for kind, x in sets.items()}
    data |= {f"{kind}_label": torch.arange(len(x)) % args.labels for kind, x in sets.items()}
    partial = args.out / "latents.partial"
    torch.save(data, partial)
    partial.replace(args.out / "latents.pt")


if __name__ == "__main__":
    main()
