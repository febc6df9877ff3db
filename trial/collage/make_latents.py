"""Encodes the rendered views with a model's encoder: python -m trial.collage.make_latents, after views.

It also writes states from which the training of the UNet and the decoder continue.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from trial.autoencoder import Autoencoder
from trial.collage.model import make_captions
from trial.collage.train_decoder import decoder_only
from trial.collage.train_unet import Denoiser
from trial.collage.views import KINDS
from trial.progress import progress_bar
from trial.small_model import CHECKPOINT, SmallModel, load
from trial.training import Trainee

BATCH = 32
UNKNOWN = 0.2
"""Words shorter than this share of the median length were never trained."""
WORDS = "text_model.embeddings.token_embedding.weight"


@torch.no_grad()
def encode(vae: Autoencoder, views: np.ndarray) -> Tensor:
    """Encodes uint8 views (N, 128, 128, 3) to latents (N, 4, 16, 16)."""
    latents = []
    for start in progress_bar(range(0, len(views), BATCH), mininterval=10):
        x = torch.from_numpy(views[start : start + BATCH]).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        latents.append(vae.moments(x.contiguous(memory_format=torch.channels_last))[0])
    return torch.cat(latents)


def main() -> None:
    """Runs the command line."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=Path("runs/collage"))
    options.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="the model to continue from")
    options.add_argument(
        "--share", type=float, default=1.0, help="share of the views that is encoded, from the first on"
    )
    args = options.parse_args()
    torch.set_num_threads(1)
    model, labels = load(args.checkpoint), len(make_captions().ids)
    write_states(model, args.out)
    encoder, data = model.vae.to(memory_format=torch.channels_last), {}
    for kind in KINDS:
        views = np.load(args.out / f"{kind}.npy", mmap_mode="r")
        latents = encode(encoder, views[: round(args.share * len(views))])
        data |= {f"{kind}_x": latents, f"{kind}_label": torch.arange(len(latents)) % labels}
    partial = args.out / "latents.partial"
    torch.save(data, partial)
    partial.replace(args.out / "latents.pt")


def write_states(model: SmallModel, out: Path) -> None:
    """Writes states of UNet, text encoder and autoencoder with a finished model's weights.

    They look as if after the first step.
    """
    captions = make_captions()
    denoiser = Denoiser(len(captions.used))
    denoiser.unet.load_state_dict(model.unet.state_dict())
    text = model.text.state_dict()
    text[WORDS] = lengthened(text[WORDS][captions.used])
    denoiser.text.load_state_dict(text)
    write_state(denoiser.requires_grad_(True), out / "unet.pt")
    write_state(decoder_only(model.vae), out / "autoencoder.pt")


def lengthened(table: Tensor) -> Tensor:
    """Gives the words (rows) that the model does not know the length of those that it knows.

    Untrained words are some twenty times shorter (`packing.STD`). The text encoder could hardly tell them apart.
    """
    lengths = table.norm(dim=1, keepdim=True)
    usual = lengths.median()
    return torch.where(lengths < UNKNOWN * usual, table * usual / lengths, table)


def write_state(module: nn.Module, path: Path) -> None:
    """Writes a training state as if after the first step."""
    trainee = Trainee(module, path, decay=0.998)
    trainee.step = 1
    trainee.save()


if __name__ == "__main__":
    main()
