"""Computes the noise schedule of Stable Diffusion 1."""

from __future__ import annotations

import torch
from torch import Tensor


def alphas_cumprod() -> Tensor:
    """Returns the share of the signal in the variance of x at each of the 1000 timesteps, (1000,).

    beta is the variance of the noise that a timestep adds. Its square root increases linearly. The two limits are those
    of Stable Diffusion's configuration.
    """
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1.0 - betas, 0).float()
