"""Stand-in: the loaded checkpoint, with the methods of the webui's latent diffusion model."""

import contextlib
import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from modules import shared
from torch import Tensor


class LatentDiffusion(torch.nn.Module):
    """Wraps a small model (trial/small_model.py) in a class with the methods and attributes of the webui's class."""

    is_sdxl = is_sd3 = False
    is_sd1 = True
    latent_channels = 4

    def __init__(self, small: Any, name: str, sha256: str):
        super().__init__()
        self.small = small
        self.model = SimpleNamespace()
        self.sd_checkpoint_info = SimpleNamespace(name_for_extra=name, title=name, sha256=sha256)
        self.sd_model_hash = sha256[:10]
        self.register_buffer("alphas_cumprod", small.alphas_cumprod.float())

    def get_learned_conditioning(self, prompts: list[str]) -> Tensor:
        """Returns the embeddings (B, 77, C) of the prompts. Does not support the webui's syntax for emphasis."""
        return self.small.encode_prompts(prompts)

    def apply_model(self, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        """Predicts the noise in x (N, 4, h, w) at timesteps (N,), which may be fractional."""
        return self.small.unet(x, t, torch.cat(cond["c_crossattn"], 1))

    def encode_first_stage(self, x: Tensor) -> Tensor:
        """Encodes images in -1..1 to latents, without noise."""
        return self.small.encode(x)

    def get_first_stage_encoding(self, encoded: Tensor) -> Tensor:
        """Returns its argument, because `encode_first_stage` has scaled the latents already."""
        return encoded

    def decode_first_stage(self, z: Tensor) -> Tensor:
        """Decodes latents to images in -1..1."""
        return self.small.decode(z)


class SdModelData:
    """Contains the loaded checkpoint as `sd_model`, or None. Reading this attribute does not load a checkpoint."""

    @property
    def sd_model(self) -> LatentDiffusion | None:
        return shared.sd_model


model_data = SdModelData()


def use_model(small: Any, name: str, sha256: str = "0" * 64) -> LatentDiffusion:
    """Makes all jobs use the model `small`. `name` and `sha256` identify the model in infotexts."""
    shared.sd_model = LatentDiffusion(small, name, sha256).eval().requires_grad_(False)
    return shared.sd_model


def reload_model_weights(sd_model: Any = None, info: Any = None, forced_reload: bool = False) -> Any:
    """Returns the current model, because there is only one."""
    return shared.sd_model


class SkipWritingToConfig(contextlib.nullcontext):
    """A context in which the webui can load another checkpoint without a change of its settings."""


def load_model(path: Path) -> LatentDiffusion:
    """Loads a checkpoint with the layout of the bundled one, and makes all jobs use this checkpoint."""
    from trial import small_model

    return use_model(small_model.load(path), path.stem, hashlib.sha256(path.read_bytes()).hexdigest())
