"""Implements samplers for flow models, independently of the code of the webuis.

The x of a flow model is (1 - sigma) signal + sigma noise.

Every sampler calls the model through the argument `steps`:

* `first(x, sigma)` makes the call that begins a step. It may blend the skip residual into x. It returns this x and the
  prediction of the clean signal.
* `again(x, sigma)` makes any other call and returns the prediction.
* `draw()` returns normal noise with a standard deviation of 1.

`eta` determines the amount of fresh noise in each step. If it is 0, only `lcm` adds noise.

`SAMPLERS` maps the names of sampling functions in Forge and Forge Neo to the samplers in this file that make the same
model calls.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor


class Steps(Protocol):
    def first(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]: ...

    def again(self, x: Tensor, sigma: Tensor) -> Tensor: ...

    def draw(self) -> Tensor: ...


def down_and_up(sigma: Tensor, target: Tensor, eta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the three numbers of an ancestral step from `sigma` to `target`.

    The first number is the noise level after the deterministic part of the step. Then x is multiplied by the second
    number. The third number is the scale of the fresh noise that is added at the end.
    """
    down = target * (1 - eta * (1 - target / sigma))
    keep = (1 - target) / (1 - down)
    return down, keep, (target**2 - (keep * down) ** 2).clamp_min(0).sqrt()


def toward(x: Tensor, denoised: Tensor, ratio: Tensor) -> Tensor:
    """Moves x toward `denoised`. The difference between x and `denoised` is multiplied by `ratio`.

    If `ratio` is the target sigma divided by the current sigma, and the prediction is constant, the result is an exact
    step of the probability flow ODE.
    """
    return ratio * x + (1 - ratio) * denoised


def euler_ancestral(steps: Steps, x: Tensor, sigmas: Tensor, eta: float) -> Tensor:
    for sigma, target in pairwise(sigmas):
        x, denoised = steps.first(x, sigma)
        if target == 0:
            return denoised
        down, keep, up = down_and_up(sigma, target, eta)
        x = toward(x, denoised, down / sigma)
        x = keep * x + up * steps.draw() if eta else x
    return x


def dpmpp_2s_ancestral(steps: Steps, x: Tensor, sigmas: Tensor, eta: float) -> Tensor:
    for sigma, target in pairwise(sigmas):
        x, denoised = steps.first(x, sigma)
        if target == 0:
            return denoised
        down, keep, up = down_and_up(sigma, target, eta)
        # the midpoint in the logarithm of the signal-to-noise ratio. At a sigma of 1, this ratio is 0 and its logarithm
        # is infinite, so the sampler uses a fixed level
        odds = ((sigma / (1 - sigma)) * (down / (1 - down))).sqrt()
        middle = odds / (1 + odds) if sigma < 1 else torch.tensor(0.9999, dtype=sigma.dtype)
        x = toward(x, steps.again(toward(x, denoised, middle / sigma), middle), down / sigma)
        x = keep * x + up * steps.draw() if eta else x
    return x


def dpm_2_ancestral(steps: Steps, x: Tensor, sigmas: Tensor, eta: float) -> Tensor:
    for sigma, target in pairwise(sigmas):
        x, denoised = steps.first(x, sigma)
        down, keep, up = down_and_up(sigma, target, eta)
        if down == 0:
            return denoised
        middle = (sigma * down).sqrt()
        slope = (
            toward(x, denoised, middle / sigma) - steps.again(toward(x, denoised, middle / sigma), middle)
        ) / middle
        x = keep * (x + (down - sigma) * slope) + up * steps.draw()
    return x


def dpmpp_sde(steps: Steps, x: Tensor, sigmas: Tensor, eta: float) -> Tensor:
    """Runs DPM-Solver++ (stochastic).

    Each step converts x to k-diffusion's space and back. There, x is signal + s noise with s = sigma / (1 - sigma).
    """
    for sigma, target in pairwise(sigmas):
        x, denoised = steps.first(x, sigma)
        if target == 0:
            return denoised
        ends = [level / (1 - level) for level in (sigma, target)]
        odds = (ends[0] * ends[1]).sqrt()
        middle = odds / (1 + odds)
        scaled = x / (1 - sigma)
        again = steps.again((1 - middle) * _renoised(scaled, denoised, (ends[0], odds), eta, steps), middle)
        x = (1 - target) * _renoised(scaled, again, (ends[0], ends[1]), eta, steps)
    return x


def dpmpp_2m_sde(steps: Steps, x: Tensor, sigmas: Tensor, eta: float) -> Tensor:
    """Runs DPM-Solver++(2M) SDE, midpoint. `h` is the increase of log((1 - sigma) / sigma) in a step."""
    old, past = None, None
    for sigma, target in pairwise(sigmas):
        x, denoised = steps.first(x, sigma)
        if target == 0:
            return denoised
        h = torch.log(sigma / (1 - sigma)) - torch.log(target / (1 - target))
        share = 1 - torch.exp(-(1 + eta) * h)
        x = target / sigma * torch.exp(-eta * h) * x + (1 - target) * share * denoised
        if old is not None:
            x = x + (1 - target) * share / 2 * h / past * (denoised - old)
        x = x + target * (1 - torch.exp(-2 * eta * h)).sqrt() * steps.draw()
        old, past = denoised, h
    return x


def lcm(steps: Steps, x: Tensor, sigmas: Tensor, eta: float) -> Tensor:
    for sigma, target in pairwise(sigmas):
        x, denoised = steps.first(x, sigma)
        x = (1 - target) * denoised + target * steps.draw() if target > 0 else denoised
    return x


def _renoised(x: Tensor, denoised: Tensor, span: tuple[Tensor, Tensor], eta: float, steps: Steps) -> Tensor:
    """Makes an ancestral step in k-diffusion's space. `span` contains its first and its last level there."""
    sigma, target = span
    up = (eta * target * (1 - (target / sigma) ** 2).sqrt()).clamp_max(target)
    return toward(x, denoised, (target**2 - up**2).sqrt() / sigma) + up * steps.draw()


SAMPLERS: dict[str, Callable[[Steps, Tensor, Tensor, float], Tensor]] = {
    "sample_euler_ancestral": euler_ancestral,
    "sample_euler_ancestral_RF": euler_ancestral,
    "sample_dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "sample_dpmpp_2s_ancestral_RF": dpmpp_2s_ancestral,
    "sample_dpm_2_ancestral": dpm_2_ancestral,
    "sample_dpm_2_ancestral_RF": dpm_2_ancestral,
    "sample_dpmpp_sde": dpmpp_sde,
    "sample_dpmpp_2m_sde": dpmpp_2m_sde,
    "sample_lcm": lcm,
}
