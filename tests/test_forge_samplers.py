"""Tests the detectors of samplers that only Forge, reForge or Forge Neo have.

Like the webui's own samplers in test_sampler_steps.py, every sampler is implemented twice. One implementation, a
function `host_...`, calls the model and the callback in the same order as the host's function, and runs with a
StageRun. The other implementation computes the same formulas and blends the skip residual explicitly. The tests compare
x in every model call, and the results.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import flow_samplers
import pytest
import torch
from test_sampler_steps import SIGMAS, Explicit, ancestral, drive, relative_error, toward
from torch import Tensor

from lib_demofusion.method.costs import model_calls
from lib_demofusion.method.sampler_steps import StepDetector, is_stochastic, make_detector

RF_SIGMAS = SIGMAS / (1 + SIGMAS)
"""Noise levels of a flow model. The formulas of "DPM++ 2s a RF" are only defined for levels below 1."""


def slope(x: Tensor, denoised: Tensor, sigma: Tensor) -> Tensor:
    """Returns the derivative of x with respect to sigma."""
    return (x - denoised) / sigma


def host_kohaku(model, x, sigmas, callback, disable, noise_sampler=None, eta=None) -> Tensor:
    """Makes three calls in each step up to the middle of the schedule, and one call in each later step.

    The second of the three calls evaluates -x, as in the host's function.
    """
    ones = x.new_ones(len(x))
    for i, (sigma, target) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma * ones)
        callback({"x": x, "i": i, "denoised": denoised})
        d = slope(x, denoised, sigma)
        down, up = ancestral(sigma, target, eta)
        if i <= (len(sigmas) - 1) / 2:
            mirror = -x
            d_2 = slope(mirror, model(mirror, sigma * ones), sigma)
            x_3 = x + (d + d_2) / 2 * (down - sigma)
            d = (d + slope(x_3, model(x_3, sigma * ones), sigma)) / 2
            x = x + d * (down - sigma) + noise_sampler(sigma, target) * up
        else:
            x = x + d * (down - sigma)
    return x


def kohaku(run: Explicit, sigmas: Tensor, eta: float) -> Tensor:
    x, n = None, len(sigmas) - 1
    for i, (sigma, target) in enumerate(pairwise(sigmas)):
        x, denoised = run.start(x, sigma)
        down, up = ancestral(sigma, target, eta)
        if 2 * i > n:
            x = toward(x, denoised, down / sigma)
            continue
        d, d_mirror = slope(x, denoised, sigma), slope(-x, run.call(-x, sigma), sigma)
        x_3 = x + (d + d_mirror) / 2 * (down - sigma)
        x = x + (d + slope(x_3, run.call(x_3, sigma), sigma)) / 2 * (down - sigma) + up * run.draw()
    return x


def host_er_sde(model, x, sigmas, callback, disable, noise_sampler=None, max_stage=1) -> Tensor:
    """Makes one call per step, and adds noise in every step except the last. Source: arXiv 2309.06169, first order.

    Like the host's function, this function has no argument eta.
    """
    for i, (sigma, target) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma * x.new_ones(len(x)))
        callback({"x": x, "i": i, "denoised": denoised})
        if target == 0:
            x = denoised
            continue
        r = er_scale(target) / er_scale(sigma)
        x = r * x + (1 - r) * denoised + noise_sampler(sigma, target) * (target**2 - sigma**2 * r**2).sqrt()
    return x


def er_scale(level: Tensor) -> Tensor:
    return level * ((level**0.3).exp() + 10)


def er_sde(run: Explicit, sigmas: Tensor) -> Tensor:
    x = None
    for sigma, target in pairwise(sigmas):
        x, denoised = run.start(x, sigma)
        if target == 0:
            return denoised
        r = er_scale(target) / er_scale(sigma)
        x = toward(x, denoised, r) + (target**2 - (sigma * r) ** 2).sqrt() * run.draw()
    return x


def host_heunpp2(model, x, sigmas, callback, disable) -> Tensor:
    """Makes three calls in most steps, two calls in the second-to-last step, and one call in the last step."""
    ones = x.new_ones(len(x))
    for i, (sigma, target) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma * ones)
        callback({"x": x, "i": i, "denoised": denoised})
        slopes = [slope(x, denoised, sigma)]
        x_2 = x
        for start, end in list(pairwise(sigmas[i:-1]))[:2]:
            x_2 = x_2 + slopes[-1] * (end - start)
            slopes.append(slope(x_2, model(x_2, end * ones), end))
        x = x + heunpp2_slope(slopes, sigmas, i) * (target - sigma)
    return x


def heunpp2_slope(slopes: list[Tensor], sigmas: Tensor, i: int) -> Tensor:
    """Returns the weighted mean of the slopes in step `i`. The slopes belong to consecutive noise levels.

    The weight of each slope except the first is proportional to the noise level of this slope.
    """
    weights = [sigmas[i + k] / (len(slopes) * sigmas[0]) for k in range(1, len(slopes))]
    return (1 - sum(weights)) * slopes[0] + sum(w * s for w, s in zip(weights, slopes[1:]))


def heunpp2(run: Explicit, sigmas: Tensor) -> Tensor:
    x, last = None, len(sigmas) - 2
    for i, (sigma, target) in enumerate(pairwise(sigmas)):
        x, denoised = run.start(x, sigma)
        slopes = [slope(x, denoised, sigma)]
        if i < last:
            x_2 = x + slopes[0] * (target - sigma)
            slopes.append(slope(x_2, run.call(x_2, target), target))
        if i < last - 1:
            x_3 = x_2 + slopes[1] * (sigmas[i + 2] - target)
            slopes.append(slope(x_3, run.call(x_3, sigmas[i + 2]), sigmas[i + 2]))
        x = x + heunpp2_slope(slopes, sigmas, i) * (target - sigma)
    return x


def host_2s_rf(model, x, sigmas, callback, disable, noise_sampler=None, eta=1.0) -> Tensor:
    """Makes two calls in every step except the last, which has one. The callback runs after a step's first call."""
    ones = x.new_ones(len(x))
    for i, (sigma, target) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma * ones)
        callback({"x": x, "i": i, "denoised": denoised})
        if target == 0:
            return denoised
        down, middle, renoise = rf_levels(sigma, target, eta)
        x_2 = toward(x, denoised, middle / sigma)
        x = toward(x, model(x_2, middle * ones), down / sigma)
        x = (1 - target) / (1 - down) * x + noise_sampler(sigma, target) * renoise
    return x


def rf_levels(sigma: Tensor, target: Tensor, eta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the level `down` after the deterministic part of the step, a middle level, and the scale of fresh noise.

    The middle level is halfway between `sigma` and `down` in log SNR.
    """
    down = target * (1 + (target / sigma - 1) * eta)
    middle = torch.sigmoid((sigma.logit() + down.logit()) / 2)
    return down, middle, (target**2 - (down * (1 - target) / (1 - down)) ** 2).sqrt()


def two_s_rf(run: Explicit, sigmas: Tensor, eta: float) -> Tensor:
    """Runs the implementation in flow_samplers.py, which does not follow the code of the host's function."""
    steps = SimpleNamespace(first=run.start, again=run.call, draw=run.draw)
    return flow_samplers.dpmpp_2s_ancestral(steps, None, sigmas, eta)


CASES: list[tuple[str, Callable[..., Tensor], Callable[..., Tensor], Tensor, dict[str, Any]]] = [
    ("sample_Kohaku_LoNyu_Yog", host_kohaku, kohaku, SIGMAS, {"eta": 1.0}),
    ("sample_Kohaku_LoNyu_Yog", host_kohaku, kohaku, SIGMAS[1:], {"eta": 0.5}),
    ("sample_er_sde", host_er_sde, er_sde, SIGMAS, {}),
    ("sample_heunpp2", host_heunpp2, heunpp2, SIGMAS, {}),
    ("sample_heunpp2", host_heunpp2, heunpp2, SIGMAS[-2:], {}),
    ("sample_dpmpp_2s_ancestral_RF", host_2s_rf, two_s_rf, RF_SIGMAS, {"eta": 1.0}),
]
"""Each case contains the name of the host's function, both implementations, the noise levels, and other arguments."""


def detector_and_noise(
    name: str, host: Callable[..., Tensor], sigmas: Tensor, given: dict[str, Any]
) -> tuple[Any, bool]:
    """Returns the detector for the host's function `name`, and whether this function adds noise."""
    draws = "noise_sampler" in inspect.signature(host).parameters
    eta = given.get("eta")
    return make_detector(name, sigmas, eta=1.0 if eta is None else eta), is_stochastic(name, eta, draws=draws)


@pytest.mark.parametrize(("name", "host", "explicit", "sigmas", "given"), CASES)
def test_sampler_equals_the_explicit_loop(name, host, explicit, sigmas, given) -> None:
    detector, stochastic = detector_and_noise(name, host, sigmas, given)
    actual = drive(host, detector, stochastic, guarded=True, sigmas=sigmas, **given)
    run = Explicit(stochastic)
    x = explicit(run, sigmas, **given)
    assert relative_error(actual, [*run.seen, x]) <= 1e-9
    assert model_calls(name, {"sigmas": sigmas}) == len(run.seen)


@pytest.mark.parametrize(("name", "host", "explicit", "sigmas", "given"), [case for case in CASES if len(case[3]) > 2])
def test_a_wrong_detector_or_a_wrong_blend_changes_the_result(name, host, explicit, sigmas, given) -> None:
    detector, stochastic = detector_and_noise(name, host, sigmas, given)
    run = Explicit(stochastic)
    expected = explicit(run, sigmas, **given)
    wrong = drive(host, detector, not stochastic, sigmas=sigmas, **given)[-1:]
    # StepDetector is the correct detector for sample_er_sde
    if name != "sample_er_sde":
        wrong += drive(host, StepDetector(), stochastic, sigmas=sigmas, **given)[-1:]
    assert all(relative_error([x], [expected]) > 1e-3 for x in wrong)


@pytest.mark.parametrize(
    ("name", "eta", "draws", "expected"),
    [
        ("sample_er_sde", None, True, True),
        ("sample_ddpm", None, True, True),
        ("sample_Kohaku_LoNyu_Yog", None, True, True),
        ("sample_Kohaku_LoNyu_Yog", 1.0, True, True),
        ("sample_Kohaku_LoNyu_Yog", 0.0, True, False),
        ("sample_res_multistep", None, True, False),
        ("sample_heunpp2", None, False, False),
        ("sample_of_tomorrow", None, True, True),
        ("sample_of_tomorrow", None, False, False),
    ],
)
def test_samplers_that_add_noise_are_recognized(name: str, eta: float | None, draws: bool, expected: bool) -> None:
    assert is_stochastic(name, eta, draws=draws) is expected
