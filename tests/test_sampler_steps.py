"""Tests that a StageRun blends x at the start of every step of a sampler, and at no other model call.

The samplers are k-diffusion's own functions. The model and the callback that they receive call the StageRun. The
results are compared with explicit loops in this file. These loops implement the same samplers again, from the formulas
in the papers, and blend x themselves.

Samplers that only the webui has are implemented twice in this file: once with calls and callbacks in the webui's order,
and once as an explicit loop. The compared runs use float64 and a denoiser in closed form, so they only differ by
rounding.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from unittest import mock

import hypothesis.strategies as st
import k_diffusion_sampling
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from numpy.polynomial import Polynomial
from torch import Tensor

from lib_demofusion.method.plan import StagePlan
from lib_demofusion.method.residual import VarianceExploding, VariancePreserving
from lib_demofusion.method.sampler_checks import guard_for
from lib_demofusion.method.sampler_steps import (
    CountedCalls,
    FirstCallAtNewLevel,
    StepDetector,
    dpm_fast_starts,
    is_stochastic,
    make_detector,
    sigma_down_is_zero,
)
from lib_demofusion.method.stage import SamplerTraits, StageRun
from lib_demofusion.settings.fields import Settings

TOLERANCE = 1e-9
"""The largest allowed difference from the explicit loop, relative to the largest value of the compared tensor."""

SHAPE = (2, 4, 24, 32)
STAGE = StagePlan(1, 2.0, (24, 32), 2, (12, 16), (6, 8))
SIGMA_MIN, SIGMA_MAX = 0.03, 14.6
STEPS = 12
EXPONENT = 1.0
"""The value of `cosine_scale_1` in the comparisons with explicit loops.

A wrong blend has a larger effect than with the default of 3.
"""
sampling = k_diffusion_sampling.load()
SIGMAS = sampling.get_sigmas_karras(STEPS, SIGMA_MIN, SIGMA_MAX).double()


def randn(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Returns the same float64 noise for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ANCHOR = randn(1)
NOISE = randn(2)


def denoise(
    x: Tensor,
    sigma: Tensor | float,
    modes: tuple[float, float] = (-1.5, 1.0),
    spreads: tuple[float, float] = (0.3, 0.5),
) -> Tensor:
    """Returns the posterior mean of each cell of x, if the distribution of the signal is a mixture of two Gaussians."""
    logits, means = [], []
    for weight, mode, spread in zip((0.4, 0.6), modes, spreads):
        variance = torch.as_tensor(spread**2 + sigma**2, dtype=x.dtype)
        logits.append(math.log(weight) - variance.log() / 2 - (x - mode) ** 2 / (2 * variance))
        means.append(mode + spread**2 / variance * (x - mode))
    share = torch.stack(logits).softmax(0)
    return (share * torch.stack(means)).sum(0)


def sigma_to_t(sigma: Tensor) -> Tensor:
    """Returns the timestep of a noise level. It is linear in log sigma, from 0 at SIGMA_MIN to 999 at SIGMA_MAX."""
    return 999 * (torch.log(sigma / SIGMA_MIN) / math.log(SIGMA_MAX / SIGMA_MIN)).clamp(0, 1)


def skip_weight(t: float, exponent: float) -> float:
    """Returns the paper's c1 at a timestep, without using the library."""
    return (0.5 * (1 + math.cos(math.pi * (1000 - t) / 1000))) ** exponent


class Draws:
    """Draws Gaussian noise with a standard deviation of 1. Every new instance draws the same sequence of tensors."""

    def __init__(self, shape: tuple[int, ...] = SHAPE):
        self.shape = shape
        self.count = 0

    def __call__(self, *levels: Tensor) -> Tensor:
        self.count += 1
        return randn(1000 + self.count, self.shape)


class DrawingTorch:
    """Imitates the torch module, with `draw` as `randn_like`. The webui replaces `torch` in k-diffusion similarly."""

    def __init__(self, draw: Draws):
        self.randn_like = draw

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextmanager
def double_precision() -> Iterator[None]:
    """Returns a context in which float64 is the default dtype, because DPM fast and DPM adaptive use this default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Explicit:
    """Makes the model calls of the explicit loops, and blends the skip residual."""

    def __init__(self, stochastic: bool = False, exponent: float = EXPONENT):
        self.stochastic = stochastic
        self.exponent = exponent
        self.draw = Draws()
        self.seen: list[Tensor] = []
        self._denoised: Tensor | None = None

    def call(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Evaluates the model at x, and records x."""
        self.seen.append(x)
        return denoise(x, sigma)

    def start(self, x: Tensor | None, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Blends x and makes the first call of a step. Returns the blended x and the prediction.

        In the first step, x is None, and the noised anchor is used in its place.
        """
        c1 = skip_weight(float(sigma_to_t(sigma)), self.exponent)
        if x is None:
            x = ANCHOR + sigma * NOISE
        elif self.stochastic:
            x = x + c1 * (ANCHOR - self._denoised)
        else:
            x = (1 - c1) * x + c1 * (ANCHOR + sigma * NOISE)
        self._denoised = self.call(x, sigma)
        return x, self._denoised


def drive(
    function: Callable[..., Tensor],
    detector: StepDetector,
    stochastic: bool,
    exponent: float = EXPONENT,
    guarded: bool = False,
    **arguments: Any,
) -> list[Tensor]:
    """Runs a sampler function with a StageRun. Returns every x that the model evaluates, then the result.

    All values of the first x are NaN, so the first blend must replace them. If `guarded`, a CallGuard also checks that
    the sampler's calls fit the detector.
    """
    start = torch.full_like(ANCHOR, torch.nan)
    traits = SamplerTraits(
        VarianceExploding(sigma_to_t), detector, stochastic, guard_for(detector, start) if guarded else None
    )
    run = StageRun(STAGE, Settings(cosine_scale_1=exponent), ANCHOR, NOISE, traits)
    seen = []

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        run.before_call(x, sigma[0])
        seen.append(x.clone())
        return denoise(x, sigma[0])

    def callback(d: dict[str, Any]) -> None:
        run.after_step(d["i"], d["x"], d["denoised"])

    draw = Draws()
    if "noise_sampler" in inspect.signature(function).parameters:
        arguments["noise_sampler"] = draw
    with mock.patch.object(sampling, "torch", DrawingTorch(draw)), double_precision():
        x = function(model, start, callback=callback, disable=True, **arguments)
    run.end()
    return [*seen, x]


def relative_error(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Compares the tensors of two runs pairwise.

    Returns the largest difference, relative to the largest absolute value of the expected tensor.
    """
    assert len(actual) == len(expected)
    return float(torch.stack([(a - b).abs().max() / b.abs().max() for a, b in zip(actual, expected)]).max())


def ancestral(sigma: Tensor, target: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """Returns the level to step down to and the standard deviation of the noise to add.

    The sum of their squares is target**2.
    """
    up = (eta * target * (1 - (target / sigma) ** 2).sqrt()).clamp_max(target)
    return (target**2 - up**2).sqrt(), up


def toward(x: Tensor, denoised: Tensor, ratio: Tensor | float) -> Tensor:
    """Returns x with its difference from `denoised` multiplied by `ratio`.

    If the model's prediction were constant, this would be an exact step of the ODE to the level ratio * sigma.
    """
    return denoised + ratio * (x - denoised)


def churned(run: Explicit, x: Tensor | None, sigma: Tensor, s_churn: float) -> tuple[Tensor | None, Tensor]:
    """Adds the noise of `s_churn` to x. Returns x and its new noise level.

    Source: Karras et al. (2022), algorithm 2, lines 4 to 6. k-diffusion draws noise even if `s_churn` is 0.
    """
    noise = run.draw()
    if not s_churn:
        return x, sigma
    sigma_hat = sigma * (1 + min(s_churn / STEPS, math.sqrt(2) - 1))
    return (None if x is None else x + noise * (sigma_hat**2 - sigma**2).sqrt()), sigma_hat


def euler(run: Explicit, sigmas: Tensor, s_churn: float = 0.0) -> Tensor:
    x = None
    for sigma, target in pairwise(sigmas):
        x, sigma_hat = churned(run, x, sigma, s_churn)
        x, denoised = run.start(x, sigma_hat)
        x = toward(x, denoised, target / sigma_hat)
    return x


def heun(run: Explicit, sigmas: Tensor, s_churn: float = 0.0) -> Tensor:
    x = None
    for sigma, target in pairwise(sigmas):
        x, sigma_hat = churned(run, x, sigma, s_churn)
        x, denoised = run.start(x, sigma_hat)
        slope = (x - denoised) / sigma_hat
        x_2 = x + (target - sigma_hat) * slope
        if target > 0:
            slope = (slope + (x_2 - run.call(x_2, target)) / target) / 2
        x = x + (target - sigma_hat) * slope
    return x


def dpm_2(run: Explicit, sigmas: Tensor, s_churn: float = 0.0) -> Tensor:
    x = None
    for sigma, target in pairwise(sigmas):
        x, sigma_hat = churned(run, x, sigma, s_churn)
        x, denoised = run.start(x, sigma_hat)
        slope = (x - denoised) / sigma_hat
        if target > 0:
            middle = (sigma_hat * target).sqrt()
            x_2 = x + (middle - sigma_hat) * slope
            slope = (x_2 - run.call(x_2, middle)) / middle
        x = x + (target - sigma_hat) * slope
    return x


def euler_ancestral(run: Explicit, sigmas: Tensor, eta: float) -> Tensor:
    x = None
    for sigma, target in pairwise(sigmas):
        x, denoised = run.start(x, sigma)
        down, up = ancestral(sigma, target, eta)
        x = toward(x, denoised, down / sigma)
        x = x + up * run.draw() if target > 0 else x
    return x


def dpm_2_ancestral(run: Explicit, sigmas: Tensor, eta: float) -> Tensor:
    x = None
    for sigma, target in pairwise(sigmas):
        x, denoised = run.start(x, sigma)
        down, up = ancestral(sigma, target, eta)
        if down == 0:
            # k-diffusion adds no noise in a step with down == 0
            x = denoised
            continue
        middle = (sigma * down).sqrt()
        x_2 = toward(x, denoised, middle / sigma)
        x = x + (down - sigma) / middle * (x_2 - run.call(x_2, middle)) + up * run.draw()
    return x


def dpmpp_2s_ancestral(run: Explicit, sigmas: Tensor, eta: float) -> Tensor:
    x = None
    for sigma, target in pairwise(sigmas):
        x, denoised = run.start(x, sigma)
        down, up = ancestral(sigma, target, eta)
        if down > 0:
            middle = (sigma * down).sqrt()
            denoised = run.call(toward(x, denoised, middle / sigma), middle)
        x = toward(x, denoised, 0) if down == 0 else down / sigma * x + (1 - down / sigma) * denoised
        x = x + up * run.draw() if target > 0 else x
    return x


def dpmpp_sde(run: Explicit, sigmas: Tensor, eta: float) -> Tensor:
    x = None
    for sigma, target in pairwise(sigmas):
        x, denoised = run.start(x, sigma)
        if target == 0:
            return denoised
        middle = (sigma * target).sqrt()
        down, up = ancestral(sigma, middle, eta)
        denoised = run.call(toward(x, denoised, down / sigma) + up * run.draw(), middle)
        down, up = ancestral(sigma, target, eta)
        x = toward(x, denoised, down / sigma) + up * run.draw()
    return x


def lms(run: Explicit, sigmas: Tensor) -> Tensor:
    """Runs Adams-Bashforth of order 4 on the slopes. The weights are integrals of Lagrange polynomials."""
    levels = sigmas.numpy()
    x, slopes = None, []
    for i, (sigma, target) in enumerate(pairwise(levels)):
        x, denoised = run.start(x, sigmas[i])
        slopes = [(x - denoised) / sigma, *slopes[:3]]
        nodes = levels[i::-1][: len(slopes)]
        for j, slope in enumerate(slopes):
            others = np.delete(nodes, j)
            basis = math.prod((Polynomial([-other, 1]) / (nodes[j] - other) for other in others), start=Polynomial([1]))
            x = x + (basis.integ()(target) - basis.integ()(sigma)) * slope
    return x


def dpmpp_2m(run: Explicit, sigmas: Tensor) -> Tensor:
    x, old = None, None
    for i, (sigma, target) in enumerate(pairwise(sigmas)):
        x, denoised = run.start(x, sigma)
        if target == 0:
            return denoised
        extrapolated = denoised
        if old is not None:
            ratio = torch.log(sigmas[i - 1] / sigma) / torch.log(sigma / target)
            extrapolated = denoised + (denoised - old) / (2 * ratio)
        x, old = toward(x, extrapolated, target / sigma), denoised
    return x


def dpmpp_2m_sde(run: Explicit, sigmas: Tensor, eta: float, solver_type: str) -> Tensor:
    x, old = None, None
    for i, (sigma, target) in enumerate(pairwise(sigmas)):
        x, denoised = run.start(x, sigma)
        if target == 0:
            return denoised
        h = torch.log(sigma / target)
        decay = torch.exp(-(1 + eta) * h)
        noise = target * (1 - torch.exp(-2 * eta * h)).sqrt() * run.draw()
        x = decay * x + (1 - decay) * denoised + noise
        if old is not None:
            slope = (denoised - old) * h / torch.log(sigmas[i - 1] / sigma)
            half = (1 - decay) / 2 if solver_type == "midpoint" else 1 - (1 - decay) / ((1 + eta) * h)
            x = x + half * slope
        old = denoised
    return x


def dpmpp_3m_sde(run: Explicit, sigmas: Tensor, eta: float) -> Tensor:
    """Runs an exponential Adams-Bashforth method of order 3 on `denoised` as a function of log sigma."""
    x, history = None, []
    for sigma, target in pairwise(sigmas):
        x, denoised = run.start(x, sigma)
        if target == 0:
            return denoised
        h = torch.log(sigma / target)
        history = [(-sigma.log(), denoised), *history[:2]]
        decay = torch.exp(-(1 + eta) * h)
        x = decay * x + (1 - decay) * denoised
        phi_2 = 1 - (1 - decay) / ((1 + eta) * h)
        slopes = [(a - b) / (s - t) * h for (s, a), (t, b) in pairwise(history)]
        if len(slopes) == 1:
            x = x + phi_2 * slopes[0]
        elif slopes:
            steps = [(history[k][0] - history[k + 1][0]) / h for k in (0, 1)]
            curve = (slopes[0] - slopes[1]) / (steps[0] + steps[1])
            x = x + phi_2 * (slopes[0] + curve * steps[0]) - (phi_2 / ((1 + eta) * h) - 0.5) * curve
        x = x + target * (1 - torch.exp(-2 * eta * h)).sqrt() * run.draw()
    return x


def solver_steps(
    run: Explicit, order: int, x: Tensor, eps: Tensor, span: tuple[Tensor, Tensor], r: float
) -> list[Tensor]:
    """Makes one step from x with DPM-Solver of order 1 and of each higher order up to `order`. Returns all results.

    `eps` is the noise that the model predicts in x. `span` contains the first and the last noise level of the step. `r`
    determines the level of the second model call: it is r times the way from the first to the last level, in log sigma.
    Source: arXiv 2206.00927, algorithms 1 and 2, with alpha = 1.
    """
    sigma, target = span
    h = torch.log(sigma / target)

    def level(share: float) -> Tensor:
        return sigma * torch.exp(-share * h)

    def excess(share: float, moved: Tensor) -> Tensor:
        return (moved - run.call(moved, level(share))) / level(share) - eps

    def plain(share: float) -> Tensor:
        return x - level(share) * torch.expm1(share * h) * eps

    results = [plain(1)]
    if order >= 2:
        first = excess(r, plain(r))
        results.append(results[0] - target / (2 * r) * torch.expm1(h) * first)
    if order == 3:
        s = 2 / 3
        second = excess(s, plain(s) - level(s) * s / r * (torch.expm1(s * h) / (s * h) - 1) * first)
        results.append(results[0] - target / s * (torch.expm1(h) / h - 1) * second)
    return results


def dpm_fast(run: Explicit, sigma_min: float, sigma_max: float, n: int, eta: float) -> Tensor:
    orders = [3] * (n // 3 - 1) + [2, 1] if n % 3 == 0 else [3] * (n // 3) + [n % 3]
    levels = torch.linspace(math.log(sigma_max), math.log(sigma_min), len(orders) + 1, dtype=torch.float64).exp()
    x = None
    for order, sigma, target in zip(orders, levels, levels[1:]):
        x, denoised = run.start(x, sigma)
        down = ancestral(sigma, target, eta)[0].clamp_min(levels[-1])
        x = solver_steps(run, order, x, (x - denoised) / sigma, (sigma, down), 1 / 2 if order == 2 else 1 / 3)[-1]
        x = x + (target**2 - down**2).clamp_min(0).sqrt() * run.draw()
    return x


def dpm_adaptive(run: Explicit, sigma_min: float, sigma_max: float, eta: float, h_init: float) -> Tensor:
    """Runs DPM-Solver-23 with k-diffusion's step size control. A rejected step is repeated from the blended x."""
    sigma, last = (torch.tensor(value, dtype=torch.float64) for value in (sigma_max, sigma_min))
    control = sampling.PIDStepSizeController(h_init, 0.0, 1.0, 0.0, 1.5 if eta else 3, 0.81)
    x, low_before = None, None
    while sigma.log() > last.log() + 1e-5:
        x, denoised = run.start(x, sigma)
        low_before = x if low_before is None else low_before
        while True:
            target = (sigma * math.exp(-control.h)).clamp_min(last)
            down = ancestral(sigma, target, eta)[0].clamp_min(last)
            low, high = solver_steps(run, 3, x, (x - denoised) / sigma, (sigma, down), 1 / 3)[1:]
            delta = (0.05 * torch.maximum(low.abs(), low_before.abs())).clamp_min(0.0078)
            if control.propose_step(((low - high) / delta).square().mean().sqrt()):
                break
            run.call(x, sigma)
        x = high + (target**2 - down**2).clamp_min(0).sqrt() * run.draw()
        sigma, low_before = target, low
    return x


def webui_lcm(model, x, sigmas, callback, disable, noise_sampler) -> Tensor:
    """Imitates the webui's LCM, which adds the noise in place to the tensor that the model returned."""
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * x.new_ones(len(x)))
        callback({"x": x, "i": i, "denoised": denoised})
        x = denoised
        if sigmas[i + 1] > 0:
            x += sigmas[i + 1] * noise_sampler(sigmas[i], sigmas[i + 1])
    return x


def lcm(run: Explicit, sigmas: Tensor) -> Tensor:
    x = None
    for sigma, target in pairwise(sigmas):
        _, denoised = run.start(x, sigma)
        x = denoised + target * run.draw() if target > 0 else denoised
    return x


RESTARTED_AT = (0, 1, 2, 3, 4, 2, 3, 4, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
"""Indices of the levels that both implementations of Restart visit, in order.

Restart returns twice from index 4 to index 2, which is a higher noise level.
"""


def webui_restart(model, x, sigmas, callback, disable, noise_sampler) -> Tensor:
    """Imitates the webui's Restart: makes Heun steps, and adds noise to x where it returns to a higher level."""
    ones = x.new_ones(len(x))
    for i, (start, end) in enumerate(pairwise(RESTARTED_AT)):
        if end < start:
            x = x + noise_sampler() * (sigmas[end] ** 2 - sigmas[start] ** 2) ** 0.5
            continue
        denoised = model(x, sigmas[start] * ones)
        d = (x - denoised) / sigmas[start]
        callback({"x": x, "i": i, "denoised": denoised})
        dt = sigmas[end] - sigmas[start]
        if sigmas[end] == 0:
            x = x + d * dt
        else:
            x_2 = x + d * dt
            x = x + (d + (x_2 - model(x_2, sigmas[end] * ones)) / sigmas[end]) / 2 * dt
    return x


def restart(run: Explicit, sigmas: Tensor) -> Tensor:
    x = None
    for start, end in pairwise(RESTARTED_AT):
        sigma, target = sigmas[start], sigmas[end]
        if end < start:
            x = x + (target**2 - sigma**2).sqrt() * run.draw()
            continue
        x, denoised = run.start(x, sigma)
        slope = (x - denoised) / sigma
        if target > 0:
            x_2 = x + (target - sigma) * slope
            slope = (slope + (x_2 - run.call(x_2, target)) / target) / 2
        x = x + (target - sigma) * slope
    return x


@dataclass(frozen=True)
class Case:
    """A sampler function, its arguments, and the explicit loop that implements the same sampler.

    `stochastic` says whether the sampler adds noise, and `two_calls` whether most steps have a second model call.
    """

    name: str
    explicit: Callable[..., Tensor]
    stochastic: bool
    arguments: dict[str, Any] = field(default_factory=dict)
    two_calls: bool = False

    def __str__(self) -> str:
        return "-".join([self.name.removeprefix("sample_"), *(f"{k}={v}" for k, v in self.arguments.items())])

    @property
    def function(self) -> Callable[..., Tensor]:
        webui = {"sample_lcm": webui_lcm, "restart_sampler": webui_restart}
        return webui[self.name] if self.name in webui else getattr(sampling, self.name)

    @property
    def inputs(self) -> dict[str, Any]:
        if "sigmas" in inspect.signature(self.function).parameters:
            return {"sigmas": SIGMAS, **self.arguments}
        return {"sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX, **self.arguments}

    def detector(self) -> StepDetector:
        known = {key: self.inputs[key] for key in ("sigmas", "n", "eta") if key in self.inputs}
        return make_detector(self.name, **known)

    def run_explicit(self) -> list[Tensor]:
        run = Explicit(self.stochastic)
        x = self.explicit(run, **self.inputs)
        return [*run.seen, x]

    def drive(self, detector: StepDetector | None = None, guarded: bool = False) -> list[Tensor]:
        return drive(self.function, detector or self.detector(), self.stochastic, guarded=guarded, **self.inputs)


CASES = [
    Case("sample_euler", euler, False),
    Case("sample_euler", euler, True, {"s_churn": 3.0}),
    Case("sample_euler", euler, True, {"s_churn": 30.0}),
    Case("sample_euler_ancestral", euler_ancestral, False, {"eta": 0.0}),
    Case("sample_euler_ancestral", euler_ancestral, True, {"eta": 0.6}),
    Case("sample_euler_ancestral", euler_ancestral, True, {"eta": 1.0}),
    Case("sample_heun", heun, False, two_calls=True),
    Case("sample_heun", heun, True, {"s_churn": 3.0}, two_calls=True),
    Case("sample_dpm_2", dpm_2, False, two_calls=True),
    Case("sample_dpm_2", dpm_2, True, {"s_churn": 3.0}, two_calls=True),
    Case("sample_dpm_2_ancestral", dpm_2_ancestral, False, {"eta": 0.0}, two_calls=True),
    Case("sample_dpm_2_ancestral", dpm_2_ancestral, True, {"eta": 1.0}, two_calls=True),
    Case("sample_dpm_2_ancestral", dpm_2_ancestral, True, {"eta": 1.2}, two_calls=True),
    Case("sample_lms", lms, False),
    Case("sample_dpmpp_2s_ancestral", dpmpp_2s_ancestral, False, {"eta": 0.0}, two_calls=True),
    Case("sample_dpmpp_2s_ancestral", dpmpp_2s_ancestral, True, {"eta": 1.0}, two_calls=True),
    Case("sample_dpmpp_2s_ancestral", dpmpp_2s_ancestral, True, {"eta": 1.2}, two_calls=True),
    Case("sample_dpmpp_sde", dpmpp_sde, False, {"eta": 0.0}, two_calls=True),
    Case("sample_dpmpp_sde", dpmpp_sde, True, {"eta": 1.0}, two_calls=True),
    Case("sample_dpmpp_2m", dpmpp_2m, False),
    Case("sample_dpmpp_2m_sde", dpmpp_2m_sde, True, {"eta": 1.0, "solver_type": "midpoint"}),
    Case("sample_dpmpp_2m_sde", dpmpp_2m_sde, True, {"eta": 1.0, "solver_type": "heun"}),
    Case("sample_dpmpp_3m_sde", dpmpp_3m_sde, True, {"eta": 1.0}),
    *(
        Case("sample_dpm_fast", dpm_fast, eta > 0, {"n": n, "eta": eta})
        for n in (1, 3, 14, 15, 16)
        for eta in (0.0, 1.0)
    ),
    *(Case("sample_dpm_adaptive", dpm_adaptive, eta > 0, {"eta": eta, "h_init": 1.5}) for eta in (0.0, 1.0)),
    Case("sample_lcm", lcm, True),
    Case("restart_sampler", restart, True, two_calls=True),
]


def test_every_sampler_of_k_diffusion_is_tested() -> None:
    assert {name for name in vars(sampling) if name.startswith("sample_")} <= {case.name for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sampler_equals_the_explicit_loop(case: Case) -> None:
    """Compares x in every model call, and the result."""
    error = relative_error(case.drive(), case.run_explicit())
    assert error <= TOLERANCE


MANY_CALLS = [case for case in CASES if case.two_calls or case.arguments.get("n", 1) > 1 or "h_init" in case.arguments]


@pytest.mark.parametrize("case", MANY_CALLS, ids=str)
def test_the_comparison_fails_if_x_is_blended_at_every_call(case: Case) -> None:
    expected = case.run_explicit()
    assert relative_error(case.drive(StepDetector())[-1:], expected[-1:]) > 1e-3


@pytest.mark.parametrize("case", [case for case in CASES if case.arguments.get("n") != 1], ids=str)
def test_the_comparison_fails_if_x_is_never_blended_after_the_first_call(case: Case) -> None:
    expected = case.run_explicit()
    never = CountedCalls(lambda call: call == 0)
    assert relative_error(case.drive(never)[-1:], expected[-1:]) > 1e-3


@pytest.mark.parametrize("case", [case for case in CASES if case.arguments.get("eta") == 1.2], ids=str)
def test_the_detector_needs_eta_because_samplers_omit_second_calls_with_a_large_eta(case: Case) -> None:
    assert len(case.drive()) < 2 * STEPS
    assert relative_error(case.drive(make_detector(case.name, SIGMAS)), case.run_explicit()) > 1e-3


@pytest.mark.parametrize("case", [case for case in CASES if "h_init" in case.arguments], ids=str)
def test_the_comparison_fails_if_rejected_steps_are_blended_again(case: Case) -> None:
    class BlendsAgain(FirstCallAtNewLevel):
        def is_step_start(self, level: float) -> bool:
            self._blended = None
            return super().is_step_start(level)

    expected = case.run_explicit()
    assert relative_error(case.drive(BlendsAgain())[-1:], expected[-1:]) > 1e-3


@pytest.mark.parametrize(
    ("name", "eta", "churn", "expected"),
    [
        ("sample_euler", None, 0.0, False),
        ("sample_euler", None, 0.5, True),
        ("sample_heun", None, 0.0, False),
        ("sample_heun", None, 0.5, True),
        ("sample_dpm_2", None, 0.0, False),
        ("sample_lms", None, 0.0, False),
        ("sample_dpmpp_2m", None, 0.0, False),
        ("sample_euler_ancestral", 1.0, 0.0, True),
        ("sample_euler_ancestral", 0.0, 0.0, False),
        ("sample_dpm_2_ancestral", 0.3, 0.0, True),
        ("sample_dpmpp_2s_ancestral", 1.0, 0.0, True),
        ("sample_dpmpp_sde", 1.0, 0.0, True),
        ("sample_dpmpp_2m_sde", 1.0, 0.0, True),
        ("sample_dpmpp_3m_sde", 1.0, 0.0, True),
        ("sample_dpm_fast", 0.0, 0.0, False),
        ("sample_dpm_adaptive", 1.0, 0.0, True),
        ("sample_lcm", None, 0.0, True),
        ("restart_sampler", None, 0.0, True),
        ("ddim", 0.0, 0.0, False),
        ("ddim", 1.0, 0.0, True),
        ("plms", None, 0.0, False),
        ("unipc", None, 0.0, False),
    ],
)
def test_samplers_that_add_noise_are_recognized(name: str, eta: float | None, churn: float, expected: bool) -> None:
    assert is_stochastic(name, eta, churn) is expected


@pytest.mark.parametrize("n", range(1, 31))
def test_dpm_fast_begins_steps_at_the_same_calls_as_in_k_diffusion(n: int) -> None:
    calls = 0
    starts = set()

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.zeros_like(x)

    def callback(d: dict[str, Any]) -> None:
        starts.add(calls - 1)

    sampling.sample_dpm_fast(model, torch.ones(1, 1, 1, 1), SIGMA_MIN, SIGMA_MAX, n, callback=callback, disable=True)
    assert dpm_fast_starts(n) == starts
    assert calls == n


LEVELS = st.floats(1e-3, 5e3)
FALLS = st.one_of(st.floats(1.0, 4.0), st.floats(0.0, 7.0).map(lambda power: 10**power))
ETAS = st.one_of(st.just(1.0), st.floats(0.0, 2.0), st.floats(1.0, 1.01))
"""The three strategies draw a noise level, the quotient of the previous level and this level, and eta."""


@settings(max_examples=300, deadline=None)
@given(level=LEVELS, fall=FALLS, eta=ETAS)
@example(level=1.0, fall=1.0, eta=1.0)
@example(level=1.0, fall=2.0, eta=(4 / 3) ** 0.5)
@example(level=0.029, fall=4518 / 0.029, eta=1.0)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["sample_dpm_2_ancestral", "sample_dpmpp_2s_ancestral"])
def test_the_detector_expects_no_second_call_exactly_if_sigma_down_is_zero(
    name: str, dtype: torch.dtype, level: float, fall: float, eta: float
) -> None:
    sigmas = torch.tensor([level * fall, level, 0.0], dtype=dtype)
    detector = make_detector(name, sigmas, eta=eta)
    for i in (0, 1):
        down, _ = sampling.get_ancestral_step(sigmas[i], sigmas[i + 1], eta)
        assert sigma_down_is_zero(sigmas[i], sigmas[i + 1], eta) is bool(down == 0)
        detector.after_step(i)
        assert detector.is_step_start(0.0) is bool(down == 0)


@pytest.mark.parametrize(("second_order", "starts"), [(True, [True, False, True]), (False, [True, True, True])])
def test_the_detector_of_an_unknown_sampler_depends_on_the_order_of_the_sampler(
    second_order: bool, starts: list[bool]
) -> None:
    detector = make_detector("sample_of_tomorrow", second_order=second_order)
    actual = [detector.is_step_start(2.0)]
    detector.after_step(0)
    actual += [detector.is_step_start(1.0), detector.is_step_start(1.0)]
    assert actual == starts


def noise_levels(stochastic: bool) -> list[float]:
    """Returns the standard deviation of the noise in x, divided by sigma, for each step of Euler a.

    The noise is measured after the blend. Each cell of the signal is 100 or -100. These values are so far apart that
    the denoiser always finds the right one.
    """
    shape, modes = (2, 4, 96, 96), (-100.0, 100.0)
    clean = 100 * randn(3, shape).sign()
    anchor, noise = clean + 0.3 * randn(4, shape), randn(5, shape)
    run = StageRun(
        STAGE, Settings(), anchor, noise, SamplerTraits(VarianceExploding(sigma_to_t), StepDetector(), stochastic)
    )
    levels = []

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        run.before_call(x, sigma[0])
        levels.append(float((x - clean).std() / sigma[0]))
        return denoise(x, sigma[0], modes, (0.001, 0.001))

    def callback(d: dict[str, Any]) -> None:
        run.after_step(d["i"], d["x"], d["denoised"])

    x = torch.zeros(shape, dtype=torch.float64)
    sampling.sample_euler_ancestral(model, x, SIGMAS, callback=callback, disable=True, noise_sampler=Draws(shape))
    return levels


def test_blending_the_signal_keeps_the_noise_level() -> None:
    assert noise_levels(stochastic=True) == pytest.approx([1.0] * STEPS, abs=0.02)


def test_blending_the_noised_anchor_would_lower_the_noise_level() -> None:
    assert min(noise_levels(stochastic=False)) < 0.95


ALPHAS = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
TIMESTEPS = (961.0, 881.0, 801.0, 721.0, 641.0, 561.0, 481.0, 401.0, 321.0, 241.0, 161.0, 81.0, 1.0)
FRACTIONS = (999.0, 929.1, 867.1, 790.5, 640.25, 480.75, 333.3, 150.6, 60.9, 0.999)
"""A schedule with fractional timesteps, for UniPC. TIMESTEPS is the schedule for DDIM and PLMS."""


def alpha_at(t: float) -> float:
    """Returns alpha-bar at a timestep. The logarithm of alpha-bar is interpolated between whole timesteps."""
    return math.exp(np.interp(t, np.arange(1000), ALPHAS.log().numpy()))


def eps_at(x: Tensor, t: float) -> Tensor:
    """Returns the noise that an exact eps model predicts in x."""
    a = alpha_at(t)
    return (x - math.sqrt(a) * denoise(x / math.sqrt(a), math.sqrt(1 / a - 1))) / math.sqrt(1 - a)


def clean(x: Tensor, eps: Tensor, t: float) -> Tensor:
    """Returns the signal in x at timestep `t`, if the noise in x is `eps`."""
    return (x - math.sqrt(1 - alpha_at(t)) * eps) / math.sqrt(alpha_at(t))


def noisy(signal: Tensor, eps: Tensor, t: float) -> Tensor:
    """Returns the signal with the noise `eps` at timestep `t`."""
    return math.sqrt(alpha_at(t)) * signal + math.sqrt(1 - alpha_at(t)) * eps


def ddim_step(x: Tensor, eps: Tensor, t: float, t_next: float, eta: float, draw: Draws) -> tuple[Tensor, Tensor]:
    """Returns the next x and the predicted signal (arXiv 2010.02502, equation 12)."""
    a, a_next = alpha_at(t), alpha_at(t_next)
    sigma = eta * math.sqrt((1 - a_next) / (1 - a) * (1 - a / a_next))
    signal = clean(x, eps, t)
    return math.sqrt(a_next) * signal + math.sqrt(1 - a_next - sigma**2) * eps + sigma * draw(), signal


def adams_bashforth(eps: list[Tensor]) -> Tensor:
    """Combines two to four predictions with the weights of PLMS. The first element of `eps` is the newest."""
    weights = {2: (3, -1), 3: (23, -16, 5), 4: (55, -59, 37, -9)}[len(eps)]
    return sum(w * e for w, e in zip(weights, eps)) / sum(weights)


def host_ddim(model, x, timesteps, callback, draw, eta) -> Tensor:
    """Imitates the webui's DDIM. The callback of a step receives the next x."""
    for i, (t, t_next) in enumerate(pairwise(timesteps)):
        x, signal = ddim_step(x, model(x, t), t, t_next, eta, draw)
        callback({"x": x, "i": i, "denoised": signal})
    return x


def host_plms(model, x, timesteps, callback, draw, eta) -> Tensor:
    """Imitates the webui's PLMS. Step 0 makes a second call, at the level of the next step."""
    history = []
    for i, (t, t_next) in enumerate(pairwise(timesteps)):
        eps = model(x, t)
        if history:
            combined = adams_bashforth([eps, *history])
        else:
            combined = (eps + model(ddim_step(x, eps, t, t_next, 0, draw)[0], t_next)) / 2
        history = [eps, *history[:2]]
        x, signal = ddim_step(x, combined, t, t_next, 0, draw)
        callback({"x": x, "i": i, "denoised": signal})
    return x


def unipc_coefficients(t: float, t_next: float) -> tuple[float, float]:
    """Returns the factors of x and of the signal in a step of order 1 (arXiv 2302.04867, data prediction)."""
    a, a_next = alpha_at(t), alpha_at(t_next)
    ratio = math.sqrt((1 - a_next) / (1 - a))
    return ratio, math.sqrt(a_next) - ratio * math.sqrt(a)


def host_unipc(model, x, timesteps, callback, draw, eta) -> Tensor:
    """Imitates the webui's UniPC at order 1.

    Each step, except the last one, predicts the next x and calls the model with it. The model's output then corrects
    the step. The predicted x itself is discarded.
    """
    signal = clean(x, model(x, timesteps[0]), timesteps[0])
    for i, (t, t_next) in enumerate(pairwise(timesteps)):
        ratio, share = unipc_coefficients(t, t_next)
        base = ratio * x + share * signal
        if i < len(timesteps) - 2:
            predicted = base.clone()
            new = clean(predicted, model(predicted, t_next), t_next)
            x = base + share / 2 * (new - signal)
            signal = new
        else:
            x = base
        callback({"x": x, "i": i, "denoised": signal})
    return x


class ExplicitTimesteps(Explicit):
    """Makes the model calls of the explicit loops of samplers that use timesteps, and blends the skip residual."""

    extra = 0.0
    """Extra noise at the start of the stage, as a fraction of the noise level of the first timestep."""

    def call(self, x: Tensor, t: float) -> Tensor:
        self.seen.append(x)
        return eps_at(x, t)

    def blend(self, x: Tensor | None, t: float) -> Tensor:
        if x is None:
            return noisy(ANCHOR, (1 + self.extra) * NOISE, t)
        c1 = skip_weight(t, self.exponent)
        if self.stochastic:
            return x + c1 * math.sqrt(alpha_at(t)) * (ANCHOR - self._denoised)
        return (1 - c1) * x + c1 * noisy(ANCHOR, NOISE, t)

    def after_step(self, signal: Tensor) -> None:
        """Stores the signal that was predicted in a step, for the next blend."""
        self._denoised = signal


def ddim(run: ExplicitTimesteps, timesteps: tuple[float, ...], eta: float) -> Tensor:
    x = None
    for t, t_next in pairwise(timesteps):
        x = run.blend(x, t)
        x, signal = ddim_step(x, run.call(x, t), t, t_next, eta, run.draw)
        run.after_step(signal)
    return x


def plms(run: ExplicitTimesteps, timesteps: tuple[float, ...], eta: float) -> Tensor:
    x, history = None, []
    for t, t_next in pairwise(timesteps):
        x = run.blend(x, t)
        history = [run.call(x, t), *history[:3]]
        if len(history) == 1:
            trial, _ = ddim_step(x, history[0], t, t_next, 0, run.draw)
            eps = (history[0] + run.call(trial, t_next)) / 2
        else:
            eps = adams_bashforth(history)
        x, _ = ddim_step(x, eps, t, t_next, 0, run.draw)
    return x


def unipc(run: ExplicitTimesteps, timesteps: tuple[float, ...], eta: float) -> Tensor:
    """Blends both the predicted x and the corrected x of a step, at the same level. The result is not blended."""
    x = run.blend(None, timesteps[0])
    signal = clean(x, run.call(x, timesteps[0]), timesteps[0])
    for t, t_next in pairwise(timesteps):
        ratio, share = unipc_coefficients(t, t_next)
        base = ratio * x + share * signal
        if t_next == timesteps[-1]:
            return base
        predicted = run.blend(base, t_next)
        new = clean(predicted, run.call(predicted, t_next), t_next)
        x = run.blend(base + share / 2 * (new - signal), t_next)
        signal = new
    return x


TIMESTEP_CASES = [
    pytest.param("ddim", host_ddim, ddim, TIMESTEPS, 0.0, id="ddim"),
    pytest.param("ddim", host_ddim, ddim, TIMESTEPS, 1.0, id="ddim-eta=1"),
    pytest.param("plms", host_plms, plms, TIMESTEPS, None, id="plms"),
    pytest.param("unipc", host_unipc, unipc, FRACTIONS, None, id="unipc"),
    pytest.param("unipc", host_unipc, unipc, FRACTIONS[:3], None, id="unipc-2-steps"),
    pytest.param("unipc", host_unipc, unipc, (999.0, 0.999), None, id="unipc-1-step"),
]


def drive_timesteps(
    function: Callable[..., Tensor],
    timesteps: tuple[float, ...],
    detector: StepDetector,
    eta: float | None,
    name: str,
    guarded: bool = False,
    extra: float = 0.0,
) -> list[Tensor]:
    """Runs a sampler that uses timesteps with a StageRun. Its model predicts eps.

    Returns every x that the model evaluates, then the result.
    """
    start = torch.full_like(ANCHOR, torch.nan)
    guard = guard_for(detector, start) if guarded else None
    traits = SamplerTraits(VariancePreserving(ALPHAS), detector, is_stochastic(name, eta), guard)
    run = StageRun(STAGE, Settings(cosine_scale_1=EXPONENT, extra_noise=extra), ANCHOR, NOISE, traits)
    seen = []

    def model(x: Tensor, t: float) -> Tensor:
        run.before_call(x, torch.tensor(t, dtype=x.dtype))
        seen.append(x.clone())
        return eps_at(x, t)

    def callback(d: dict[str, Any]) -> None:
        run.after_step(d["i"], d["x"], d["denoised"])

    x = function(model, start, timesteps, callback, Draws(), eta)
    run.end()
    return [*seen, x]


@pytest.mark.parametrize("extra", [0.0, 0.2])
@pytest.mark.parametrize(("name", "host", "explicit", "timesteps", "eta"), TIMESTEP_CASES)
def test_timestep_sampler_equals_the_explicit_loop(name, host, explicit, timesteps, eta, extra) -> None:
    actual = drive_timesteps(host, timesteps, make_detector(name), eta, name, extra=extra)
    run = ExplicitTimesteps(is_stochastic(name, eta))
    run.extra = extra
    x = explicit(run, timesteps, eta)
    assert relative_error(actual, [*run.seen, x]) <= TOLERANCE


@pytest.mark.parametrize(("name", "host", "explicit", "timesteps", "eta"), TIMESTEP_CASES[2:4])
def test_plms_and_unipc_need_their_own_step_detectors(name, host, explicit, timesteps, eta) -> None:
    actual = drive_timesteps(host, timesteps, StepDetector(), eta, name)
    run = ExplicitTimesteps()
    x = explicit(run, timesteps, eta)
    assert relative_error(actual, [*run.seen, x]) > 1e-3


@pytest.mark.parametrize("t", [0.0, 0.4, 1.0, 250.25, 929.1, 998.5, 999.0])
def test_signal_and_noise_scales_equal_the_closed_form_at_any_timestep(t: float) -> None:
    space = VariancePreserving(ALPHAS.float())
    level = torch.tensor(t)
    signal, noise = space.signal_scale(level), space.noise_scale(level)
    assert float(signal) == pytest.approx(math.sqrt(alpha_at(t)), rel=1e-5)
    assert float(noise) == pytest.approx(math.sqrt(1 - alpha_at(t)), rel=1e-4)
    assert space.read(level)[1] == pytest.approx(t)


@pytest.mark.parametrize(
    ("space", "levels"),
    [(VarianceExploding(sigma_to_t), (12, 11)), (VariancePreserving(ALPHAS), (900, 800))],
    ids=["sigma", "timestep"],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.int64])
@pytest.mark.parametrize("stochastic", [False, True])
def test_levels_may_be_integers_or_in_half_precision(
    space, levels: tuple[int, int], dtype: torch.dtype, stochastic: bool
) -> None:
    """If the level is an integer, the scales of signal and noise must not be rounded to integers."""

    def blended(level_dtype: torch.dtype) -> Tensor:
        run = StageRun(STAGE, Settings(), ANCHOR, NOISE, SamplerTraits(space, StepDetector(), stochastic))
        x = torch.zeros_like(ANCHOR)
        run.before_call(x, torch.tensor(levels[0], dtype=level_dtype))
        run.after_step(0, x, randn(6))
        run.before_call(x, torch.tensor(levels[1], dtype=level_dtype))
        return x

    assert relative_error([blended(dtype)], [blended(torch.float64)]) < 5e-3
