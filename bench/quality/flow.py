"""Runs the small model as a flow model: x = (1 - sigma) signal + sigma noise, with sigma from 1 to 0.

The prediction of a model that predicts noise can be converted into the prediction of a flow model. The small model was
trained on x / sqrt((1 - sigma)^2 + sigma^2), at the timestep with the same signal-to-noise ratio. Its last timestep has
the signal-to-noise ratio of sigma = 0.936. Steps with a higher sigma use the last timestep too. A real flow model is
also trained on higher sigmas, so it can give other results there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from bench.quality.sampler import Predict, lcm_output
from lib_demofusion.method.residual import Flow
from lib_demofusion.method.sampler_steps import StepDetector
from lib_demofusion.method.schedule import (
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
"""The noise level of a flow model that corresponds to the small model's last timestep: 0.936."""


@dataclass(frozen=True)
class FlowRow:
    """How a row of the benchmark's table runs the small model as a flow model."""

    sampler: Sampler = "Euler"
    shift: float = 3.0
    weights: Weights = "equal SNR"
    """How a sigma is converted to the timestep that determines the cosine weights (see bench/README.md)."""

    def levels(self, steps: int) -> Tensor:
        """Returns the noise levels (steps + 1,) of a whole schedule from 1 to 0, with the shift, as float64."""
        u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        return self.shift * u / (1 + (self.shift - 1) * u)

    def traits(self) -> SamplerTraits:
        """Returns the properties of the sampler on which the skip residual depends."""
        unshifted = unshifted_timestep(self.shift)
        timesteps = {"equal SNR": snr_timestep, "1000 sigma": linear_timestep, "unshifted": unshifted}
        return SamplerTraits(Flow(timesteps[self.weights]), StepDetector(), stochastic=self.sampler == "Euler a")

    def steps(self, steps: int, strength: float) -> Tensor:
        """Returns the noise levels of a stage, down to 0.

        The denoising strength determines the first level (see `steps_by_level`). The stage has `steps` times `strength`
        steps, rounded, but at least one.
        """
        chosen = steps_by_level(steps, strength, 1, self.levels)
        return self.levels(chosen.schedule)[chosen.schedule - chosen.run :]


def clean_latent(eps: Predict, x: Tensor, sigma: float, lcm: bool = False) -> Tensor:
    """Predicts the clean latent for x (B, 4, h, w) of a flow model at `sigma`.

    `eps(scaled, t)` is the small model. It predicts the noise in `scaled` at the timestep t, which can be fractional.
    `scaled` is x, multiplied so that it has the scale on which the small model was trained. Set `lcm` for a consistency
    model.
    """
    scaled, t = x / ((1 - sigma) ** 2 + sigma**2) ** 0.5, snr_timestep(sigma)
    known = min(sigma, LAST_SIGMA)
    noise = known / ((1 - known) ** 2 + known**2) ** 0.5
    found = (scaled - noise * eps(scaled, t)) / (1 - noise**2) ** 0.5
    return lcm_output(scaled, found, t) if lcm else found


def sample_flow(
    x: Tensor,
    sigmas: Tensor,
    predict: Predict,
    run: StageRun | None = None,
    sampler: Sampler = "Euler",
    fresh: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Samples the clean latent from x (B, 4, h, w). `sigmas` are the noise levels, from the level of x down to 0.

    `predict(x, sigma)` returns the predicted clean latent. `fresh(x)` returns new noise in the shape of x, and only
    Euler a needs it. Pass the `run` of a stage to apply its skip residual.
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
    """Computes a step of Euler a (eta 1) for flow models.

    The step first goes down to the noise level target^2 / sigma. It then adds noise to reach the level `target`.
    """
    down = target * target / sigma
    keep = (1 - target) / (1 - down)
    x = down / sigma * x + (1 - down / sigma) * denoised
    return keep * x + (target**2 - (down * keep) ** 2) ** 0.5 * noise
