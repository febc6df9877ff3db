"""UNets and an autoencoder with the sizes of Stable Diffusion and random weights. They are as slow as the real ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lib_demofusion.method.conditioning import CROP, SIZES
from lib_demofusion.method.views import Size
from trial.autoencoder import Autoencoder, AutoencoderConfig
from trial.unet import SpatialTransformer, UNet, UNetConfig, timestep_embedding

NUMBERS_DIM = 256
"""Width of the embedding of each of the six numbers in SDXL's vector."""


class XLUNet(UNet):
    """SDXL's UNet.

    Unlike that of SD 1.5, it has more transformer blocks at the lower levels, attention heads of the same width at all
    levels, and a vector as input in addition to the text.
    """

    def __init__(self, config: UNetConfig, depths: Sequence[int], head_dim: int, vector_dim: int) -> None:
        self._depths = {config.model_channels * mult: n for mult, n in zip(config.channel_mult, depths)}
        self._head_dim = head_dim
        super().__init__(config)
        emb = 4 * config.model_channels
        self.label_emb = nn.Sequential(nn.Sequential(nn.Linear(vector_dim, emb), nn.SiLU(), nn.Linear(emb, emb)))

    def _transformer(self, channels: int) -> SpatialTransformer:
        heads = channels // self._head_dim
        return SpatialTransformer(channels, self.config.context_dim, heads, self._depths[channels])

    def forward(self, x: Tensor, t: Tensor, context: Tensor, vector: Tensor) -> Tensor:
        return self.from_embedding(x, self.embedded(t, x.dtype) + self.label_emb(vector), context)


@dataclass(frozen=True)
class Kind:
    """The architecture of a UNet."""

    name: str
    make: Callable[[], UNet]
    native: Size
    """Height and width of the base image in latent cells."""
    vector_dim: int = 0
    scales: tuple[int, ...] = (2, 4)
    """Scales of the measured stages."""


def _sd15() -> UNet:
    return UNet(UNetConfig(320, (1, 2, 4, 4), 2, (1, 2, 4), num_heads=8, context_dim=768))


def _sdxl() -> UNet:
    return XLUNet(UNetConfig(320, (1, 2, 4), 2, (2, 4), context_dim=2048), (0, 2, 10), 64, 2816)


def _tiny_sd15() -> UNet:
    return UNet(UNetConfig(32, (1,), 1, (1,), num_heads=2, context_dim=32))


def _tiny_sdxl() -> UNet:
    return XLUNet(UNetConfig(32, (1, 2), 1, (2,), context_dim=32), (0, 2), 16, 64 + 6 * NUMBERS_DIM)


SD15, SDXL = Kind("SD 1.5", _sd15, (64, 64)), Kind("SDXL", _sdxl, (128, 128), 2816)
TINY_SD15 = Kind("SD 1.5", _tiny_sd15, (8, 8), scales=(2,))
TINY_SDXL = Kind("SDXL", _tiny_sdxl, (8, 8), 64 + 6 * NUMBERS_DIM)


def autoencoder(tiny: bool = False) -> Autoencoder:
    """Builds the autoencoder that SD 1.5 and SDXL share, or a small one of the same layout."""
    if tiny:
        return Autoencoder(AutoencoderConfig(ch=32, num_res_blocks=1))
    return Autoencoder(AutoencoderConfig(ch=128, ch_mult=(1, 2, 4, 4), num_res_blocks=2))


def filled(make: Callable[[], Any], device: torch.device, dtype: torch.dtype) -> Any:
    """Builds a module with random weights directly on the device. Its output has about unit scale."""
    with torch.device("meta"):
        module = make()
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is None:
                continue
            made = torch.zeros(weight.shape, device=device, dtype=dtype)
            if weight.dim() > 1:
                made.normal_(0, weight[0].numel() ** -0.5)
            elif name == "weight":
                made.fill_(1)
            part._parameters[name] = nn.Parameter(made, requires_grad=False)
    return module.eval()


def converted(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Converts a module's weights to another type, one by one, and returns the module."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    return module


class NumberEmbedder:
    """Embeds pairs of numbers like SDXL's ConcatTimestepEmbedderND."""

    outdim = NUMBERS_DIM

    def __init__(self, key: str) -> None:
        self.input_key = key

    def __call__(self, numbers: Tensor) -> Tensor:
        return timestep_embedding(numbers.flatten(), self.outdim).reshape(len(numbers), -1)


EMBEDDERS = [NumberEmbedder(key) for key in (SIZES[0], CROP, SIZES[1])]


class Model:
    """A UNet with the interface of k-diffusion's wrapper in the webui.

    It takes x and sigma, and returns the denoised x in float32.
    """

    def __init__(self, kind: Kind, device: torch.device, dtype: torch.dtype) -> None:
        self.kind, self.device, self.dtype = kind, device, dtype
        self.unet = filled(kind.make, device, dtype)
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        alphas = torch.cumprod(1 - betas, 0)
        self.sigmas = ((1 - alphas) / alphas).sqrt().to(device)
        self._log_sigmas = self.sigmas.log()
        text = torch.randn(2, 77, self.unet.config.context_dim, device=device, dtype=dtype)
        self.cond = {"crossattn": text}
        if kind.vector_dim:
            self.cond["vector"] = torch.randn(2, kind.vector_dim, device=device, dtype=dtype)

    def sigma_to_t(self, sigma: Tensor) -> Tensor:
        """Returns the nearest timesteps (N,) to noise levels (N,)."""
        return (self._log_sigmas[:, None] - sigma.log()).abs().argmin(0).to(sigma.dtype)

    def __call__(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Returns the denoised rows of x (N, 4, h, w) at noise levels (N,)."""
        level = sigma[:, None, None, None]
        scaled = (x / (level**2 + 1).sqrt()).to(self.dtype)
        inputs = [cond[key] for key in ("crossattn", "vector") if key in cond]
        return x - self.unet(scaled, self.sigma_to_t(sigma), *inputs).float() * level
