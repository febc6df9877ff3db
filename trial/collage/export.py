"""Writes the packed checkpoint from the training states: python -m trial.collage.export."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import yaml
from torch import Tensor

from trial import packing
from trial.autoencoder import SCALE_FACTOR
from trial.collage.model import AUTOENCODER, TEXT, UNET, make_captions
from trial.collage.train_unet import Denoiser
from trial.schedule import BETA_FIRST, BETA_LAST, STEPS, buffers
from trial.small_model import CHECKPOINT, POSITIONS, TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX
from trial.text import LENGTH, TextEncoder
from trial.training import averaged
from trial.unet import UNetConfig

CLIP_FOLDER = "models/demofusion-collage-clip"


def _plain(config) -> dict:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(config).items()}


def _unet_section(config: UNetConfig) -> dict:
    params = _plain(config)
    channels = params.pop("channels")
    params |= {"image_size": 16, "in_channels": channels, "out_channels": channels, "use_spatial_transformer": True}
    params |= {"transformer_depth": 1, "use_checkpoint": False, "legacy": False}
    return {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": params}


def _autoencoder_section() -> dict:
    shape = {"double_z": True, "resolution": 128, "in_channels": 3, "out_ch": 3, "attn_resolutions": [], "dropout": 0.0}
    params = {"embed_dim": 4, "monitor": "val/rec_loss", "ddconfig": {**_plain(AUTOENCODER), **shape}}
    params["lossconfig"] = {"target": "torch.nn.Identity"}
    return {"target": "ldm.models.autoencoder.AutoencoderKL", "params": params}


def configuration() -> dict:
    """Returns the yaml from which the webui builds the model. The text encoder's folder is relative to the webui's."""
    params = {
        "linear_start": BETA_FIRST,
        "linear_end": BETA_LAST,
        "timesteps": STEPS,
        "num_timesteps_cond": 1,
        "log_every_t": 200,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": 16,
        "channels": 4,
        "cond_stage_trainable": False,
        "conditioning_key": "crossattn",
        "monitor": "val/loss_simple_ema",
        "scale_factor": SCALE_FACTOR,
        "use_ema": False,
        "unet_config": _unet_section(UNET),
        "first_stage_config": _autoencoder_section(),
        "cond_stage_config": {
            "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
            "params": {"version": CLIP_FOLDER},
        },
    }
    target = "ldm.models.diffusion.ddpm.LatentDiffusion"
    return {"model": {"base_learning_rate": 1.0e-4, "target": target, "params": params}}


def full_text_encoder(state: dict[str, Tensor], used: Tensor) -> dict[str, Tensor]:
    """Returns the trained encoder with the whole vocabulary.

    Words outside of the training have small random vectors.
    """
    torch.manual_seed(0)
    name = "text_model.embeddings.token_embedding.weight"
    table = TextEncoder(TEXT).state_dict()[name]
    table[used] = state[name].float()
    return {**state, name: table}


def assembled(unet: dict[str, Tensor], vae: dict[str, Tensor], text: dict[str, Tensor]) -> dict[str, Tensor]:
    """Combines the tensors of the parts to those of a checkpoint."""
    parts = {UNET_PREFIX: unet, VAE_PREFIX: vae, TEXT_PREFIX: text}
    tensors = {prefix + name: t.half().contiguous() for prefix, part in parts.items() for name, t in part.items()}
    return {**tensors, **buffers(), POSITIONS: torch.arange(LENGTH)[None]}


def main() -> None:
    """Runs the command line."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=Path("runs/collage"), help="folder of the training states")
    options.add_argument("--to", type=Path, default=CHECKPOINT)
    args = options.parse_args()
    captions = make_captions()
    denoiser = Denoiser(len(captions.used))
    denoiser.load_state_dict(averaged(args.out / "unet.pt"))
    text = full_text_encoder(denoiser.text.state_dict(), captions.used)
    tensors = assembled(denoiser.unet.state_dict(), averaged(args.out / "autoencoder.pt"), text)
    args.to.parent.mkdir(parents=True, exist_ok=True)
    text_yaml = yaml.safe_dump(configuration(), sort_keys=False)
    args.to.with_suffix(".yaml").write_text(text_yaml, encoding="utf-8")
    packing.save(args.to, tensors, captions.used)


if __name__ == "__main__":
    main()
