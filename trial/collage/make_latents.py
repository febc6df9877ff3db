"""Encodes the rendered views, and writes the autoencoder with which the training of the decoder starts.

Run python -m trial.collage.make_latents after views and train_encoder. With --checkpoint it needs only views and uses
the encoder of a finished model. It then also writes states from which the training of the UNet and the decoder can
continue. With --together it uses the encoder and decoder of train_autoencoder, and keeps the UNet's state.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from trial.autoencoder import Autoencoder
from trial.collage.model import AUTOENCODER, TEXT, UNET, make_captions
from trial.collage.train_autoencoder import TOGETHER
from trial.collage.train_encoder import Pair
from trial.collage.views import KINDS
from trial.design import LOG_VARIANCE, design_decoder
from trial.export import averaged
from trial.make_latents import SCALE_FACTOR, normalise
from trial.progress import progress_bar
from trial.small_model import SmallModel, load
from trial.train_autoencoder import decoder_only
from trial.train_unet import Denoiser
from trial.training import Trainee

BATCH = 32
WORDS = "text_model.embeddings.token_embedding.weight"


@torch.no_grad()
def starting_autoencoder(pair: Pair) -> Autoencoder:
    """Combines the trained encoder with a decoder that smoothly enlarges the thumbnail contained in the latents."""
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
def encode(encoder: Callable[[Tensor], Tensor], views: np.ndarray) -> Tensor:
    """Encodes uint8 views (N, 128, 128, 3) to latents (N, 4, 16, 16)."""
    latents = []
    for start in progress_bar(range(0, len(views), BATCH), mininterval=10):
        x = torch.from_numpy(views[start : start + BATCH]).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(encoder(x.contiguous(memory_format=torch.channels_last)).float())
    return torch.cat(latents)


def main() -> None:
    """Runs the command line."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=Path("runs/collage"))
    source = options.add_mutually_exclusive_group()
    source.add_argument("--encoder", type=Path, help="state of train_encoder, if not in --out")
    source.add_argument("--checkpoint", type=Path, help="a finished model from which the training goes on")
    source.add_argument("--together", action="store_true", help="after train_autoencoder, with what it trained")
    options.add_argument("--labels", type=int, default=240, help="number of captions, by which labels take turns")
    options.add_argument(
        "--share", type=float, default=1.0, help="share of the views that is encoded, from the first on"
    )
    args = options.parse_args()
    torch.set_num_threads(1)
    views = {kind: np.load(args.out / f"{kind}.npy", mmap_mode="r") for kind in KINDS}
    views = {kind: pictures[: round(args.share * len(pictures))] for kind, pictures in views.items()}
    if args.checkpoint or args.together:
        vae = trained_together(args.out) if args.together else finished(args.checkpoint, args.out)
        save_latents({kind: encode(lambda x: vae.moments(x)[0], each) for kind, each in views.items()}, args)
        return
    pair = Pair()
    pair.load_state_dict(averaged(args.encoder or args.out / "encoder.pt"))
    pair = pair.eval().to(memory_format=torch.channels_last)
    sets = {kind: encode(pair.latents, each) for kind, each in views.items()}
    whole = sets["whole"]
    mean, scale = whole.mean((0, 2, 3)), SCALE_FACTOR * whole.std((0, 2, 3))
    model = starting_autoencoder(pair)
    normalise(model, mean, scale)
    torch.save(model.state_dict(), args.out / "autoencoder-start.pt")
    save_latents({kind: (x - mean[:, None, None]) / scale[:, None, None] for kind, x in sets.items()}, args)


def save_latents(sets: dict[str, Tensor], args: argparse.Namespace) -> None:
    """Writes the latents (N, 4, 16, 16) of every kind of view with the indices of their labels."""
    data = {f"{kind}_x": x for kind, x in sets.items()}
    data |= {f"{kind}_label": torch.arange(len(x)) % args.labels for kind, x in sets.items()}
    partial = args.out / "latents.partial"
    torch.save(data, partial)
    partial.replace(args.out / "latents.pt")


def finished(checkpoint: Path, out: Path) -> Autoencoder:
    """Writes states of a finished model's parts and returns its autoencoder."""
    model = load(checkpoint)
    write_states(model, out)
    return model.vae


def trained_together(out: Path) -> Autoencoder:
    """Returns the averaged autoencoder of train_autoencoder, and writes it as the start of the decoder's training."""
    model = Autoencoder(AUTOENCODER)
    model.load_state_dict(averaged(out / TOGETHER))
    write_autoencoder(model, out)
    return model


def write_states(model: SmallModel, out: Path) -> None:
    """Writes states of UNet, text encoder and autoencoder with a finished model's weights.

    They look as if after the first step.
    """
    captions = make_captions()
    denoiser = Denoiser(len(captions.used), UNET, TEXT)
    denoiser.unet.load_state_dict(model.unet.state_dict())
    text = model.text.state_dict()
    text[WORDS] = text[WORDS][captions.used]
    denoiser.text.load_state_dict(text)
    write_state(denoiser.requires_grad_(True), out / "unet.pt")
    write_autoencoder(model.vae, out)


def write_autoencoder(model: Autoencoder, out: Path) -> None:
    """Writes the autoencoder at the start of the decoder's training, and its state as if after the first step."""
    write_state(decoder_only(model), out / "autoencoder.pt")
    torch.save(model.state_dict(), out / "autoencoder-start.pt")


def write_state(module: nn.Module, path: Path) -> None:
    """Writes a training state as if after the first step."""
    trainee = Trainee(module, path, decay=0.998)
    trainee.step = 1
    trainee.save()


if __name__ == "__main__":
    main()
