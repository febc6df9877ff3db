"""Provides the noise, and the prediction of consistency models (LCM), that training and benchmark share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trial.schedule import STEPS

GUIDANCE = 3.0


def initial_noise(seeds: list[int], height: int, width: int) -> Tensor:
    """Returns unit noise (B, 4, height, width) with one seed per image. Sizes are in latent cells."""
    draws = [torch.randn(4, height, width, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws)


def denoised(x: Tensor, eps: Tensor, power: Tensor) -> Tensor:
    """Returns the clean latent for the noise `eps` in x, if `power` is the signal's power (alphas_cumprod)."""
    return (x - (1.0 - power).sqrt() * eps) / power.sqrt()


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
