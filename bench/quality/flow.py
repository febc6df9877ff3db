"""Runs the small model as a flow model: x = (1 - sigma) signal + sigma noise, with sigma from 1 to 0.

The prediction of a model that predicts noise can be converted to that of a flow model. The model was trained on
x / sqrt((1 - sigma)^2 + sigma^2), at the timestep with the same signal-to-noise ratio. Its last timestep corresponds to
sigma = 0.936, and is also used above that level. The results of steps above that level are therefore a property of this
model and not of flow models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from bench.quality.sampler import lcm_output
from lib_demofusion.method.residual import Flow
from lib_demofusion.method.sampler_steps import StepDetector
from lib_demofusion.method.schedule import (
    StageSteps,
    flow_level,
    linear_timestep,
    snr_timestep,
    steps_by_level,
    unshifted_timestep,
)
from lib_demofusion.method.stage import SamplerTraits, StageRun

Sampler = Literal["Euler", "DPM++ 2M", "Euler a"]
Weights = Literal["equal SNR", "1000 sigma", "unshifted"]

LAST_SIGMA = flow_level(999)
"""The end of the small model's schedule as the sigma of a flow model: 0.936."""


@dataclass(frozen=True)
class FlowRow:
    """Describes how a row of the table runs the model."""

    sampler: Sampler = "Euler"
    shift: float = 3.0
    weights: Weights = "equal SNR"
    """The timestep at which the cosine weights are evaluated for a noise level."""

    def levels(self, steps: int) -> Tensor:
        """Returns a uniform schedule with the shift, (steps + 1,) float64 from 1 to 0."""
        u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        return self.shift * u / (1 + (self.shift - 1) * u)

    def traits(self) -> SamplerTraits:
        """Returns the traits that determine how the skip residual acts."""
        timestep = {
            "equal SNR": snr_timestep,
            "1000 sigma": linear_timestep,
            "unshifted": unshifted_timestep(self.shift),
        }[self.weights]
        return SamplerTraits(Flow(timestep), StepDetector(), stochastic=self.sampler == "Euler a")

    def steps(self, steps: int, strength: float) -> Tensor:
        """Returns the levels of a stage with that strength, from a schedule of `steps` steps."""
        chosen: StageSteps = steps_by_level(steps, strength, 1, self.levels)
        return self.levels(chosen.schedule)[chosen.schedule - chosen.run :]


Ask = Callable[[Tensor, float], Tensor]
"""Returns the small model's noise prediction for x in the model's own scale, at a timestep that may be fractional."""


def clean_latent(ask: Ask, x: Tensor, sigma: float, consistency: bool = False) -> Tensor:
    """Returns the clean latent that the model predicts for a flow model's x (B, 4, h, w) at `sigma`.

    Set `consistency` for a consistency model.
    """
    scaled, t = x / ((1 - sigma) ** 2 + sigma**2) ** 0.5, snr_timestep(sigma)
    known = min(sigma, LAST_SIGMA)
    noise = known / ((1 - known) ** 2 + known**2) ** 0.5
    found = (scaled - noise * ask(scaled, t)) / (1 - noise**2) ** 0.5
    return lcm_output(scaled, found, t) if consistency else found


def sample_flow(
    x: Tensor,
    sigmas: Tensor,
    predict: Callable[[Tensor, float], Tensor],
    run: StageRun | None = None,
    sampler: Sampler = "Euler",
    fresh: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Samples the clean latent from x (B, 4, h, w) at the first of `sigmas`, which decrease to 0.

    `predict(x, sigma)` is the clean latent. `fresh(x)` is the new noise of Euler a in its form for flow models.
    """
    before, before_denoised = None, None
    for i, (sigma, target) in enumerate(pairwise(sigmas.tolist())):
        if run is not None:
            run.before_call(x, sigmas[i])
        denoised = predict(x, sigma)
        if run is not None:
            run.after_step(i, x, denoised)
        if sampler == "Euler a" and fresh is not None and target > 0:
            x = euler_ancestral_step(x, denoised, sigma, target, fresh(x))
        elif sampler == "DPM++ 2M" and before_denoised is not None and target > 0:
            past = torch.log(torch.tensor([before / sigma, sigma / target], dtype=torch.float64))
            slope = (denoised - before_denoised) * float(past[1] / past[0]) / 2
            x = target / sigma * x + (1 - target / sigma) * (denoised + slope)
        else:
            x = target / sigma * x + (1 - target / sigma) * denoised
        before, before_denoised = sigma, denoised
    return x


def euler_ancestral_step(x: Tensor, denoised: Tensor, sigma: float, target: float, noise: Tensor) -> Tensor:
    """Computes a step of Euler a (eta 1) for flow models: down to target^2 / sigma, then up to `target` with noise."""
    down = target * target / sigma
    keep = (1 - target) / (1 - down)
    x = down / sigma * x + (1 - down / sigma) * denoised
    return keep * x + (target**2 - (down * keep) ** 2) ** 0.5 * noise
