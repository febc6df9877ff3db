"""A small model with random weights, which runs on any device and in any precision."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from typing import Any

import torch
from autoencoders import Decoder, Encoder, randomised
from modules import devices
from modules.sd_models import LatentDiffusion
from torch import Tensor, nn

CONTRAST = 0.3
"""The weights of the decoder's last layer are multiplied by this factor.

Decoded images then have values in about -1..1 with a standard deviation of about 0.2.
"""

SCALE = 0.6
"""The latent is the encoder's output times this factor, which corresponds to `scale_factor` in ldm."""


class TinyUnet(nn.Module):
    """Estimates the clean latent from x and the prompt, and returns the noise in x that follows from the estimate.

    The estimate is tanh(a + b), where a is a random convolution of x, and b is a number per channel that depends on the
    prompt.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(4, 4, 3, padding=1)
        self.prompt = nn.Linear(8, 4)
        betas = torch.linspace(0.00085**0.5, 0.0120**0.5, 1000, dtype=torch.float64) ** 2
        # alphas is not a buffer, because module.to(dtype) would convert a buffer to half precision
        self.alphas = torch.cumprod(1 - betas, 0).float()

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Predicts the noise in x (N, 4, h, w) at timesteps (N,)."""
        alpha = self.alphas[t.float().round().long().clamp(0, 999)][:, None, None, None]
        target = torch.tanh(self.convolution(x) + self.prompt(context.mean(1))[:, :, None, None])
        return ((x - alpha.sqrt() * target) / (1 - alpha).sqrt()).to(target.dtype)


class TinyAutoencoder(nn.Module):
    """An autoencoder with Stable Diffusion's layout."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.encoder, self.decoder = randomised(Encoder(channels)), randomised(Decoder(channels))
        # without this factor, many values of an image would be outside -1..1 and would be clipped
        self.decoder.conv_out.weight.mul_(CONTRAST)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(8, 8, 1), nn.Conv2d(4, 4, 1)
        self.dtype = torch.float32


class TinyModel(nn.Module):
    """A UNet and an autoencoder with random weights."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.unet, self.vae = TinyUnet(), TinyAutoencoder()
        self.requires_grad_(False)
        self.alphas_cumprod = self.unet.alphas

    def on(self, card: Any, unet: torch.dtype, vae: torch.dtype) -> TinyModel:
        """Returns a copy of the model on a card, or on the CPU if `card` is None.

        `unet` and `vae` are the floating-point types of the copied networks.
        """
        moved = copy.deepcopy(self)
        moved.vae.dtype = vae
        if card is None:
            moved.unet.to(unet)
            moved.vae.to(vae)
        else:
            card.put_module(moved.unet, unet)
            card.put_module(moved.vae, vae)
            moved.alphas_cumprod = moved.unet.alphas = card.put(self.unet.alphas.clone())
        return moved

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """Returns embeddings (B, 77, 8) that depend on every letter of the prompts."""
        seeds = [int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:6], "big") for prompt in prompts]
        made = [torch.randn(77, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(made).to(devices.device, devices.dtype)


class HostModel(LatentDiffusion):
    """Gives a TinyModel the interface of the webui's model. Converts types like the webui's sd_hijack_unet.py."""

    def __init__(self, small: TinyModel):
        super().__init__(small, "tiny", "0" * 64)
        self.first_stage_model = small.vae

    def apply_model(self, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        kind = devices.dtype_unet
        context = torch.cat([part.to(kind) for part in cond["c_crossattn"]], 1)
        with devices.autocast():
            out = self.small.unet(x.to(kind), t.to(kind), context)
        return out.float() if devices.unet_needs_upcast else out

    def encode_first_stage(self, x: Tensor) -> Tensor:
        vae = self.first_stage_model
        return vae.quant_conv(vae.encoder(x))

    def get_first_stage_encoding(self, encoded: Tensor) -> Tensor:
        # returns the mean of the distribution, because a random sample would differ between the card and the CPU
        return encoded.chunk(2, 1)[0] * SCALE

    def decode_first_stage(self, z: Tensor) -> Tensor:
        vae = self.first_stage_model
        return vae.decoder(vae.post_quant_conv(z / SCALE))


def decode_first_stage(model: HostModel, x: Tensor) -> Tensor:
    """Decodes latents outside autocast. Returns images (B, 3, H, W) with values in about -1..1.

    Imitates decode_first_stage in the webui's modules/sd_samplers_common.py.
    """
    with torch.no_grad(), devices.without_autocast() or contextlib.nullcontext():
        return model.decode_first_stage(x.to(devices.dtype_vae).to(model.first_stage_model.dtype))
