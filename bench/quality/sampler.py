"""Implements DDIM and LCM, and draws the noise for all samplers. The samplers of flow models are in flow.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib_demofusion.method.schedule import steps_of_stage
from lib_demofusion.method.stage import StageRun

Predict = Callable[[Tensor, float], Tensor]
"""A function that predicts the noise in x (B, 4, h, w) at a timestep. For flow models: the clean latent at a sigma."""
LCM_GRID = 50
"""Number of timesteps on which latent consistency models are trained: every 20th, from 19 to 999."""
BETWEEN = 7_000_003
"""LCM and Euler a add noise between steps. The seed of this noise is BETWEEN plus the seed of the image or stage."""


@dataclass(frozen=True)
class Steps:
    """The decreasing timesteps of a run, alphas_cumprod (1000,) of the model, and the choice of the sampler.

    If `fresh` is None, the sampler is DDIM with eta 0. Otherwise, it is LCM. Between its steps, LCM adds the noise
    `fresh(x)`, which has the shape of x (B, 4, h, w).
    """

    times: Sequence[int]
    alphas: Tensor
    fresh: Callable[[Tensor], Tensor] | None = None


def timesteps(steps: int, strength: float = 1.0, lcm: bool = False) -> list[int]:
    """Returns the last part of a schedule of `steps` decreasing timesteps. `strength` is the share of this part."""
    if lcm:
        times = torch.linspace(LCM_GRID, 0, steps + 1).round() * (1000 // LCM_GRID) - 1
    else:
        times = torch.linspace(999, 0, steps + 1).round()
    return times[:-1].long().tolist()[-steps_of_stage(steps, strength) :]


def lcm_output(x: Tensor, predicted: Tensor, t: float) -> Tensor:
    """Computes the output of a consistency model from x and from the clean latent that is predicted at the timestep t.

    At t = 0, the output is x. At all other timesteps, it is almost equal to the prediction. Source: Luo et al., arXiv
    2310.04378, equation 9, with sigma_data 0.5 and timesteps multiplied by 10.
    """
    time, data = 10 * t, 0.5
    whole = time**2 + data**2
    return data**2 / whole * x + time / whole**0.5 * predicted


def initial_noise(seeds: Sequence[int], height: int, width: int) -> Tensor:
    """Draws noise (B, 4, height, width) with variance 1. Each image has its own seed. Sizes are in latent cells."""
    draws = [torch.randn(4, height, width, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws)


def fresh_noise(seeds: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Returns a function that draws new noise in the shape of its argument x (B, 4, h, w) at every call.

    Each image has its own generator, so the noise of an image does not depend on the other images of the batch.
    """
    generators = [torch.Generator().manual_seed(BETWEEN + seed) for seed in seeds]

    def draw(x: Tensor) -> Tensor:
        return torch.stack([torch.randn(x.shape[1:], generator=generator) for generator in generators]).to(x)

    return draw


def sample(x: Tensor, steps: Steps, predict: Predict, run: StageRun | None = None) -> Tensor:
    """Samples the clean latent from x (B, 4, h, w), which has the noise level of the first timestep.

    Pass the `run` of a stage to apply its skip residual.
    """
    for i, (now, after) in enumerate(zip(steps.times, [*steps.times[1:], None])):
        if run is not None:
            run.before_call(x, torch.tensor(float(now)))
        eps, alpha = predict(x, now), steps.alphas[now]
        denoised, noise = (x - (1 - alpha).sqrt() * eps) / alpha.sqrt(), eps
        if steps.fresh is not None:
            denoised, noise = lcm_output(x, denoised, now), steps.fresh(x)
        if run is not None:
            run.after_step(i, x, denoised)
        alpha = steps.alphas[after] if after is not None else torch.ones_like(alpha)
        x = alpha.sqrt() * denoised + (1 - alpha).sqrt() * noise
    return x
