"""Computes Stable Diffusion 1's noise schedule and the buffers that its checkpoints contain."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS, BETA_FIRST, BETA_LAST = 1000, 0.00085, 0.012


def alphas_cumprod() -> Tensor:
    """Returns the remaining signal power after each of the 1000 steps, in float64."""
    return torch.cumprod(1.0 - betas(), 0)


def betas() -> Tensor:
    """Returns the noise power that each step adds, in float64. Its square root is linear."""
    return torch.linspace(BETA_FIRST**0.5, BETA_LAST**0.5, STEPS, dtype=torch.float64) ** 2


def buffers() -> dict[str, Tensor]:
    """Returns the schedule's tensors under their names in a checkpoint, in float32."""
    beta, total = betas(), alphas_cumprod()
    before = torch.cat([torch.ones(1, dtype=torch.float64), total[:-1]])
    variance = beta * (1.0 - before) / (1.0 - total)
    tensors = {
        "betas": beta,
        "alphas_cumprod": total,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": total.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1.0 - total).sqrt(),
        "log_one_minus_alphas_cumprod": (1.0 - total).log(),
        "sqrt_recip_alphas_cumprod": total.rsqrt(),
        "sqrt_recipm1_alphas_cumprod": (1.0 / total - 1.0).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": beta * before.sqrt() / (1.0 - total),
        "posterior_mean_coef2": (1.0 - before) * (1.0 - beta).sqrt() / (1.0 - total),
    }
    return {name: tensor.float() for name, tensor in tensors.items()}
