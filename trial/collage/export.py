"""Writes a packed checkpoint with the trained UNet and text encoder: python -m trial.collage.export.

Everything else comes from the bundled checkpoint: the autoencoder, the noise schedule, and the configuration next to
it.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from torch import Tensor

from trial import packing
from trial.collage.model import make_captions
from trial.collage.train_unet import WORDS
from trial.small_model import CHECKPOINT, TEXT_PREFIX, UNET_PREFIX
from trial.training import averaged


def replaced(tensors: dict[str, Tensor], denoiser: dict[str, Tensor], used: Tensor) -> dict[str, Tensor]:
    """Returns the tensors of a checkpoint with the weights of a Denoiser. `used` are its words in the vocabulary."""
    table = tensors[packing.WORDS].clone()
    table[used] = denoiser[f"text.{WORDS}"].half()
    trained = {}
    for name, tensor in denoiser.items():
        part, _, rest = name.partition(".")
        trained[(UNET_PREFIX if part == "unet" else TEXT_PREFIX) + rest] = tensor.half().contiguous()
    return {**tensors, **trained, packing.WORDS: table}


def main() -> None:
    """Runs the command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=Path("runs/collage"), help="folder of the training state")
    options.add_argument("--to", type=Path, default=CHECKPOINT)
    args = options.parse_args()
    used = make_captions().used
    tensors = replaced(packing.load(CHECKPOINT), averaged(args.out / "unet.pt"), used)
    packing.save(args.to, tensors, used)
    if args.to != CHECKPOINT:
        shutil.copyfile(CHECKPOINT.with_suffix(".yaml"), args.to.with_suffix(".yaml"))


if __name__ == "__main__":
    main()
