"""Compares a stage of a flow model with the same stage in k-diffusion's space.

The x of a flow model is (1 - sigma) signal + sigma noise. The substitution x' = x / (1 - sigma) and
sigma' = sigma / (1 - sigma) converts this x to k-diffusion's x' = signal + sigma' noise. The tests run a stage with
Euler steps in each of the two spaces, and compare x in every step. These runs begin at sigma = 0.97, because the
substitution divides by zero at sigma = 1.
"""

from __future__ import annotations

import functools
import math
from itertools import pairwise

import k_diffusion_sampling
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lib_demofusion.method.batching import ViewBatches
from lib_demofusion.method.plan import StagePlan
from lib_demofusion.method.residual import Flow, NoiseSpace, VarianceExploding
from lib_demofusion.method.sampler_steps import StepDetector
from lib_demofusion.method.schedule import flow_level, linear_timestep, snr_timestep, unshifted_timestep
from lib_demofusion.method.stage import SamplerTraits, StageRun
from lib_demofusion.settings.fields import Settings

TOLERANCE = 1e-6
"""The largest allowed relative error. The fused prediction is accumulated in single precision."""

STAGE = StagePlan(1, 2.0, (24, 32), 2, (12, 16), (6, 8))
SETTINGS = Settings(feather=0.25, extra_noise=0.1)
SIGMAS = torch.cat([torch.linspace(0.97, 0.03, 12, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])


def randn(seed: int, *shape: int) -> Tensor:
    """Returns the same float64 noise for the same seed."""
    return torch.randn(shape or (2, 4, 24, 32), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ANCHOR, NOISE, KERNEL = randn(1), randn(2), randn(3, 4, 4, 3, 3) / 6


def denoised_of_flow(x: Tensor, sigma: Tensor) -> Tensor:
    """Denoises x. The result at a cell depends on the neighboring cells and on the noise level.

    A view that is cropped, blurred or placed incorrectly therefore changes the result of a stage.
    """
    return torch.tanh(F.conv2d(x, KERNEL, padding=1) + sigma) - 0.2 * sigma * x


def denoised_of_sigma(x: Tensor, sigma: Tensor) -> Tensor:
    """Denoises x with the model of `denoised_of_flow`. Here, `x` and `sigma` are in k-diffusion's space."""
    return denoised_of_flow(x / (1 + sigma), sigma / (1 + sigma))


def stage(space: NoiseSpace, model, kept_share, sigmas: Tensor, stochastic: bool = False) -> list[Tensor]:
    """Runs a stage with Euler steps. Returns the x of every step after the blend, then the result.

    `kept_share(sigma)` is the correction of dilated views (see `DilatedPath`) at a noise level. If `stochastic` is set,
    every step except the last also replaces half of the noise power (see `renoised`).
    """
    run = StageRun(STAGE, SETTINGS, ANCHOR, NOISE, SamplerTraits(space, StepDetector(), stochastic))
    x, seen = torch.full_like(ANCHOR, torch.nan), []
    for i, (sigma, target) in enumerate(pairwise(sigmas)):
        run.before_call(x, sigma)
        seen.append(x.clone())
        denoised = run.denoise(
            lambda crops, views, rows, sigma=sigma: model(crops, sigma), x, kept_share(sigma), ViewBatches(3)
        )
        run.after_step(i, x, denoised)
        if stochastic and target > 0:
            x = renoised(x, denoised, (space, sigma, target), randn(100 + i))
        else:
            x = x + (target - sigma) * (x - denoised) / sigma
    return [*seen, x]


def renoised(x: Tensor, denoised: Tensor, levels: tuple[NoiseSpace, Tensor, Tensor], fresh: Tensor) -> Tensor:
    """Returns x at the next level. Fresh noise replaces half of the noise power.

    `levels` contains the noise space, the current level and the next level.
    """
    space, sigma, target = levels
    old = (x - space.signal_scale(sigma) * denoised) / space.noise_scale(sigma)
    noise = (old + fresh) / math.sqrt(2)
    return space.signal_scale(target) * denoised + space.noise_scale(target) * noise


def substituted(sigmas: Tensor) -> Tensor:
    return sigmas / (1 - sigmas)


def timestep_of_sigma(sigma: Tensor) -> Tensor:
    return torch.tensor([snr_timestep(float(sigma / (1 + sigma)))], dtype=torch.float64)


def relative_error(actual: list[Tensor], expected: list[Tensor]) -> float:
    assert len(actual) == len(expected)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(actual, expected))


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
def test_a_stage_equals_the_same_stage_in_k_diffusions_space(share: float, stochastic: bool) -> None:
    """`share` is the correction of dilated views for the flow model.

    In k-diffusion's space, the equivalent correction is share / (1 + sigma').
    """
    flow = stage(Flow(), denoised_of_flow, lambda sigma: share, SIGMAS, stochastic)
    exploding = VarianceExploding(timestep_of_sigma)
    sigma_form = stage(
        exploding, denoised_of_sigma, lambda sigma: share / (1 + float(sigma)), substituted(SIGMAS), stochastic
    )
    scaled = [x / (1 - sigma) for x, sigma in zip(flow, SIGMAS)]
    assert relative_error(scaled, sigma_form) < TOLERANCE


def test_another_correction_changes_the_result() -> None:
    one = stage(Flow(), denoised_of_flow, lambda sigma: 1.0, SIGMAS)
    other = stage(Flow(), denoised_of_flow, lambda sigma: 0.9, SIGMAS)
    assert relative_error(one, other) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_stage_that_begins_at_pure_noise_stays_finite(dtype: torch.dtype) -> None:
    """At sigma = 1, x contains no signal."""
    anchor, noise = ANCHOR.to(dtype), NOISE.to(dtype)
    run = StageRun(STAGE, SETTINGS, anchor, noise, SamplerTraits(Flow(), StepDetector()))
    x = torch.full_like(anchor, torch.nan)
    for sigma in (1.0, 0.9):
        level = torch.tensor(sigma)
        run.before_call(x, level)
        if sigma == 1:
            torch.testing.assert_close(x, noise * 1.1)
        denoised = run.denoise(lambda crops, views, rows: torch.tanh(crops), x, 1.0, ViewBatches(3))
        run.after_step(0, x, denoised)
        x = x + (0.9 - sigma) * ((x - denoised) / sigma).to(dtype)
        assert torch.isfinite(x).all()


def test_timesteps_and_scales_of_flow_levels() -> None:
    level, t = Flow(linear_timestep).read(torch.tensor(0.5))
    assert (float(level), t) == (0.5, 500.0)
    assert Flow().read(torch.tensor(0.5))[1] == pytest.approx(354, abs=0.5)
    assert float(Flow().signal_scale(torch.tensor(0.25))) == 0.75
    assert float(Flow().noise_scale(torch.tensor(0.25))) == 0.25


@functools.cache
def k_diffusion_schedule():
    """Returns k-diffusion's DiscreteSchedule of Stable Diffusion, whose `sigma_to_t` returns fractional timesteps."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    return k_diffusion_sampling.load("external").DiscreteSchedule(((1 - alphas) / alphas) ** 0.5, quantize=False)


@settings(deadline=None)
@given(st.floats(1e-6, 1 - 1e-6))
def test_snr_timestep_equals_k_diffusions_sigma_to_t(sigma: float) -> None:
    expected = k_diffusion_schedule().sigma_to_t(torch.tensor([sigma / (1 - sigma)], dtype=torch.float64))
    assert snr_timestep(sigma) == pytest.approx(float(expected), abs=1e-6)


@given(st.floats(0, 999))
def test_flow_level_is_the_inverse_of_snr_timestep(t: float) -> None:
    assert snr_timestep(flow_level(t)) == pytest.approx(t, abs=1e-6)


def test_timesteps_at_the_ends_of_a_schedule() -> None:
    assert (snr_timestep(0.0), snr_timestep(1.0)) == (0.0, 999.0)
    assert flow_level(1000) == flow_level(999) < 1


@given(st.floats(0.5, 12), st.floats(0, 1))
def test_unshifted_timesteps_undo_the_shift(shift: float, u: float) -> None:
    """SD3 computes sigma from u with the parameter `shift`. Flux has another formula with a parameter mu.

    Both formulas are equal if `shift` is exp(mu).
    """
    sigma = shift * u / (1 + (shift - 1) * u)
    assert unshifted_timestep(shift)(sigma) == pytest.approx(1000 * u, abs=1e-6)
    if u > 0:
        mu = math.log(shift)
        assert sigma == pytest.approx(math.exp(mu) / (math.exp(mu) + 1 / u - 1))
    assert unshifted_timestep(1.0)(u) == linear_timestep(u)
