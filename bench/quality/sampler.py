"""Implements the two samplers of the benchmark: DDIM and LCM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.quality.denoiser import Predict
from lib_demofusion.method.schedule import steps_of_stage
from lib_demofusion.method.stage import StageRun
from trial.sampling import consistency, lcm_times


@dataclass(frozen=True)
class Steps:
    """Decreasing timesteps, the schedule's alphas_cumprod (1000,), and a consistency model's noise between steps.

    `fresh(x)` is new noise in the shape of x (B, 4, h, w). Without it the sampler is DDIM with eta 0.
    """

    times: Sequence[int]
    alphas: Tensor
    fresh: Callable[[Tensor], Tensor] | None = None


def timesteps(steps: int, strength: float = 1.0, lcm: bool = False) -> list[int]:
    """Returns the last part of a schedule of `steps` decreasing timesteps. `strength` is the share that runs."""
    times = lcm_times(steps) if lcm else torch.linspace(999, 0, steps + 1).round().long()[:-1].tolist()
    return times[-steps_of_stage(steps, strength) :]


def sample(x: Tensor, steps: Steps, predict: Predict, run: StageRun | None = None) -> Tensor:
    """Samples the clean latent from x (B, 4, h, w) at the first of the timesteps."""
    alphas = steps.alphas
    for i, (now, after) in enumerate(zip(steps.times, [*steps.times[1:], None])):
        if run is not None:
            run.before_call(x, torch.tensor(float(now)))
        eps = predict(x, now)
        alpha = alphas[now]
        if steps.fresh is None:
            denoised, noise = (x - (1 - alpha).sqrt() * eps) / alpha.sqrt(), eps
        else:
            denoised, noise = consistency(x, eps, torch.tensor([now]), alphas), steps.fresh(x)
        if run is not None:
            run.after_step(i, x, denoised)
        alpha = alphas[after] if after is not None else torch.ones_like(alpha)
        x = alpha.sqrt() * denoised + (1 - alpha).sqrt() * noise
    return x
