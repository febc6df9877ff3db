"""Computes Stable Diffusion 1's noise schedule."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS, BETA_FIRST, BETA_LAST = 1000, 0.00085, 0.012


def alphas_cumprod() -> Tensor:
    """Returns the remaining signal power after each of the 1000 steps, in float64. The root of beta is linear."""
    betas = torch.linspace(BETA_FIRST**0.5, BETA_LAST**0.5, STEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1.0 - betas, 0)
