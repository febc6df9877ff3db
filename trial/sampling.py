"""Samples with plain DDIM and classifier-free guidance, or with LCM, at any latent size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trial.schedule import STEPS
from trial.small_model import SmallModel

GUIDANCE = 3.0


def initial_noise(seeds: list[int], height: int, width: int) -> Tensor:
    """Returns unit noise (B, 4, height, width) with one seed per image. Sizes are in latent cells."""
    draws = [torch.randn(4, height, width, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws)


def denoised(x: Tensor, eps: Tensor, power: Tensor) -> Tensor:
    """Returns the clean latent for the noise `eps` in x, if `power` is the signal's power (alphas_cumprod)."""
    return (x - (1.0 - power).sqrt() * eps) / power.sqrt()


@torch.no_grad()
def ddim(model: SmallModel, prompts: list[str], noise: Tensor, steps: int = 25, guidance: float = GUIDANCE) -> Tensor:
    """Returns latents (B, 4, h, w) for the prompts, deterministic for a given noise (DDIM with eta 0)."""
    batch = len(prompts)
    context = model.encode_prompts([*prompts, *[""] * batch])
    times = torch.linspace(999, 0, steps + 1).round().long()[:-1].tolist()
    x = noise.to(model.device)
    for now, after in zip(times, [*times[1:], -1], strict=True):
        t = torch.full((2 * batch,), now, device=x.device)
        eps, free = model.unet(torch.cat([x, x]), t, context).chunk(2)
        eps = free + guidance * (eps - free)
        power = model.alphas_cumprod[now]
        power_after = model.alphas_cumprod[after] if after >= 0 else torch.ones_like(power)
        x = power_after.sqrt() * denoised(x, eps, power) + (1.0 - power_after).sqrt() * eps
    return x


LCM_GRID = 50
"""The number of timesteps that latent consistency models know: every 20th, from 19 to 999."""
SIGMA_DATA, TIMESTEP_SCALE = 0.5, 10.0


def lcm_times(steps: int) -> list[int]:
    """Returns `steps` of the known timesteps, evenly spaced and decreasing from 999."""
    skip = STEPS // LCM_GRID
    chosen = torch.linspace(LCM_GRID, 0, steps + 1).round().long()[:-1]
    return (chosen * skip - 1).tolist()


def consistency(x: Tensor, eps: Tensor, t: Tensor, alphas: Tensor) -> Tensor:
    """Returns the clean latent (B, 4, h, w) of a consistency model from its predicted noise in x at t (B,).

    Luo et al. (arXiv 2310.04378), equation 9: x itself at t = 0, and almost only the prediction soon after.
    """
    scaled, power = TIMESTEP_SCALE * t.float(), alphas[t]
    skip, out = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2), scaled / (scaled**2 + SIGMA_DATA**2).sqrt()
    skip, out, power = (part[:, None, None, None] for part in (skip, out, power))
    return skip * x + out * denoised(x, eps, power)


BETWEEN = 7_000_003
"""Added to the seed of an image or stage for the noise between its steps."""


def fresh_noise(seeds: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Returns the noise between the steps of images with these seeds.

    Each image's noise is drawn separately, so it does not depend on the batch.
    """
    generators = [torch.Generator().manual_seed(BETWEEN + seed) for seed in seeds]

    def draw(x: Tensor) -> Tensor:
        return torch.stack([torch.randn(x.shape[1:], generator=generator) for generator in generators]).to(x)

    return draw


@torch.no_grad()
def lcm(
    model: SmallModel, prompts: list[str], noise: Tensor, fresh: Callable[[Tensor], Tensor], steps: int = 4
) -> Tensor:
    """Returns latents (B, 4, h, w) of a consistency model with built-in guidance.

    `fresh(x)` is the noise between steps.
    """
    context, alphas, x = model.encode_prompts(prompts), model.alphas_cumprod, noise.to(model.device)
    times = lcm_times(steps)
    for now, after in zip(times, [*times[1:], None], strict=True):
        t = torch.full((len(prompts),), now, device=x.device)
        x = consistency(x, model.unet(x, t, context), t, alphas)
        if after is not None:
            x = alphas[after].sqrt() * x + (1.0 - alphas[after]).sqrt() * fresh(x)
    return x


@torch.no_grad()
def pictures(model: SmallModel, latents: Tensor) -> Tensor:
    """Returns images (B, H, W, 3) in 0..1 on the CPU."""
    decoded = torch.cat([model.decode(latent[None]) for latent in latents])
    return (decoded.permute(0, 2, 3, 1).cpu() + 1.0) / 2.0
