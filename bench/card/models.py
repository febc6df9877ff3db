"""Networks with the layers of SDXL and SD 1.5, but random weights. Those of TRUE take as long as the real ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from bench.card.report import Card
from lib_demofusion.method.conditioning import CROP, SIZES
from lib_demofusion.method.schedule import log_sigmas
from lib_demofusion.method.views import Size
from trial.autoencoder import AutoencoderConfig
from trial.unet import UNet, UNetConfig, timestep_embedding


@dataclass(frozen=True)
class Sizes:
    """The architectures of the networks, and the sizes to measure."""

    unets: dict[str, tuple[UNetConfig, Size, Sequence[int]]]
    """By name: the UNet, the height and width of the base image in latent cells, and the scales to measure."""
    autoencoder: AutoencoderConfig
    sides: tuple[int, int, int]
    """Sides of the decoded and encoded images, in pixels."""
    cards: tuple[int, int]
    """Memory in bytes of the smaller GPUs to simulate."""


SDXL = {"transformer_depth": (0, 2, 10), "num_head_channels": 64, "adm_in_channels": 2816}
TRUE = Sizes(
    {
        "SDXL": (UNetConfig(320, (1, 2, 4), 2, (2, 4), context_dim=2048, **SDXL), (128, 128), (2, 4)),
        "SD 1.5": (UNetConfig(320, (1, 2, 4, 4), 2, (1, 2, 4), num_heads=8, context_dim=768), (64, 64), (2, 4)),
    },
    AutoencoderConfig(ch=128, ch_mult=(1, 2, 4, 4), num_res_blocks=2),
    (2048, 4096, 8192),
    (8 << 30, 12 << 30),
)
TINY_SDXL = {"transformer_depth": (0, 2), "num_head_channels": 16, "adm_in_channels": 1600}
TINY = Sizes(
    {
        "SDXL": (UNetConfig(32, (1, 2), 1, (2,), context_dim=32, **TINY_SDXL), (8, 8), (2, 4)),
        "SD 1.5": (UNetConfig(32, (1,), 1, (1,), num_heads=2, context_dim=32), (8, 8), (2,)),
    },
    AutoencoderConfig(ch=32, num_res_blocks=1),
    (64, 128, 256),
    (8 << 20, 12 << 20),
)


def filled(make: Callable[[], nn.Module], card: Card) -> nn.Module:
    """Builds a module with random weights directly on the card, in half precision (on a CPU: in single precision).

    The weights are scaled so that the standard deviation of the module's output is between 0.5 and 0.7.
    """
    with torch.device("meta"):
        module = make().to(card.half)
    module.to_empty(device=card.device)
    for name, weight in module.named_parameters():
        if weight.dim() > 1:
            weight.normal_(0, weight[0].numel() ** -0.5)
        else:
            weight.fill_(float(name.endswith("weight")))
    return module.requires_grad_(False).eval()


@dataclass(frozen=True)
class NumberEmbedder:
    """Embeds pairs of numbers (N, 2), such as sizes, like SDXL's ConcatTimestepEmbedderND. Returns (N, 2 outdim)."""

    input_key: str  # SDXL's name for the pairs, such as "target_size_as_tuple"
    outdim: int = 256

    def __call__(self, numbers: Tensor) -> Tensor:
        return timestep_embedding(numbers.flatten(), self.outdim).reshape(len(numbers), -1)


class Model:
    """A UNet with the interface of k-diffusion's wrapper in the webui, and a random cond and uncond of one image."""

    def __init__(self, name: str, config: UNetConfig, native: Size, card: Card) -> None:
        self.name, self.native, self.device = name, native, card.device
        self._build = partial(filled, lambda: UNet(config), card)
        self._log_sigmas = torch.tensor(log_sigmas(), device=card.device)
        self.sigmas = self._log_sigmas.exp()
        self.cond = {"crossattn": torch.randn(2, 77, config.context_dim, device=card.device, dtype=card.half)}
        self.inner_model = SimpleNamespace()
        if config.adm_in_channels:
            self.cond["vector"] = torch.randn(2, config.adm_in_channels, device=card.device, dtype=card.half)
            embedders = [NumberEmbedder(key) for key in (SIZES[0], CROP, SIZES[1])]
            self.inner_model.conditioner = SimpleNamespace(embedders=embedders)
        self.shapes: list[torch.Size] = []
        """The shape of x in every call since the list was cleared."""
        self.seconds: dict[int, float] = {}
        """The seconds per view that `measurements.measure_calls` measured, by the number of views in a batch."""

    @cached_property
    def unet(self) -> nn.Module:
        """The network. It is built at the first use, which may run out of memory."""
        return self._build()

    def sigma_to_t(self, sigma: Tensor) -> Tensor:
        """Returns the timesteps (N,) whose noise levels are nearest to `sigma` (N,)."""
        return (self._log_sigmas[:, None] - sigma.log()).abs().argmin(0).to(sigma.dtype)

    def get_scalings(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the factors (N,) of the UNet's output and of its input: c_out and c_in in k-diffusion."""
        return -sigma, 1 / (sigma**2 + 1).sqrt()

    def __call__(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Returns the denoised x (N, 4, h, w) for noise levels (N,)."""
        self.shapes.append(x.shape)
        c_out, c_in = (factor[:, None, None, None] for factor in self.get_scalings(sigma))
        text = cond["crossattn"]
        eps = self.unet((x * c_in).to(text.dtype), self.sigma_to_t(sigma), text, cond.get("vector"))
        return x + eps.float() * c_out

    def bare(self, x: Tensor) -> Tensor:
        """Denoises x (2 V, 4, h, w), the cond and uncond rows of V views, in one call without the extension."""
        cond = {key: torch.cat([value] * (len(x) // 2)) for key, value in self.cond.items()}
        return self(x, self.sigmas[500].repeat(len(x)), cond)
