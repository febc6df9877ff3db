"""Writes the packed checkpoint from the training states: python -m trial.collage.export."""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

from trial import packing
from trial.collage.model import TEXT, UNET, make_captions
from trial.export import assembled, averaged, configuration, full_text_encoder
from trial.small_model import COLLAGE_CHECKPOINT
from trial.train_unet import Denoiser

CLIP_FOLDER = "models/demofusion-collage-clip"


def main() -> None:
    """Runs the command line."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=Path("runs/collage"), help="folder of the training states")
    options.add_argument("--to", type=Path, default=COLLAGE_CHECKPOINT)
    args = options.parse_args()
    captions = make_captions()
    denoiser = Denoiser(len(captions.used), UNET, TEXT)
    denoiser.load_state_dict(averaged(args.out / "unet.pt"))
    text = full_text_encoder(denoiser.text.state_dict(), captions.used, TEXT)
    tensors = assembled(denoiser.unet.state_dict(), averaged(args.out / "autoencoder.pt"), text)
    args.to.parent.mkdir(parents=True, exist_ok=True)
    text_yaml = yaml.safe_dump(configuration(UNET, CLIP_FOLDER), sort_keys=False)
    args.to.with_suffix(".yaml").write_text(text_yaml, encoding="utf-8")
    packing.save(args.to, tensors, captions.used)


if __name__ == "__main__":
    main()
