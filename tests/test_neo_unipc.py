"""Tests the step detector for Forge Neo's UniPC, which stores x in another scale and passes copies to its model.

`host_unipc` imitates Forge Neo's function at order 1: it calls the model and the callback in the same order, and runs
with a StageRun. `explicit_unipc` computes the same steps in k-diffusion's scale and blends the skip residual
explicitly. The tests compare x in every model call, and the results.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from test_sampler_steps import ANCHOR, EXPONENT, NOISE, SIGMAS, STAGE, denoise, relative_error, sigma_to_t, skip_weight
from torch import Tensor

from lib_demofusion.method.residual import VarianceExploding
from lib_demofusion.method.sampler_steps import StepDetector, make_detector
from lib_demofusion.method.stage import SamplerTraits, StageRun
from lib_demofusion.settings.fields import Settings

LEVELS = SIGMAS.clone()
LEVELS[-1] = 0.001
"""The noise levels. Forge Neo replaces the final zero with 0.001."""


def shrink(sigma: Tensor) -> float:
    """Returns the factor that converts k-diffusion's x to the x that Forge Neo's UniPC stores."""
    return 1 / math.sqrt(1 + float(sigma) ** 2)


def step(x: Tensor, clean: Tensor, sigma: Tensor, target: Tensor) -> tuple[Tensor, float]:
    """Returns x after one first-order step in k-diffusion's scale, and the factor of `clean` in this result."""
    ratio = float(target / sigma)
    return ratio * x + (1 - ratio) * clean, 1 - ratio


def host_unipc(model: Callable[..., Tensor], x: Tensor, levels: Tensor, callback: Callable[..., None]) -> Tensor:
    """Runs UniPC with the model calls and callbacks of Forge Neo.

    The last iteration corrects x and then also makes the final step, so the last callback receives the result.
    """

    def clean_of(small: Tensor, sigma: Tensor) -> Tensor:
        shown = small / shrink(sigma)
        noise = (shown - model(shown, sigma)) / sigma
        return small / shrink(sigma) - sigma * noise

    def update(small: Tensor, clean: Tensor, sigma: Tensor, target: Tensor) -> tuple[Tensor, float]:
        moved, share = step(small / shrink(sigma), clean, sigma, target)
        return moved * shrink(target), share * shrink(target)

    small, steps = x * shrink(levels[0]), len(levels) - 1
    clean = clean_of(small, levels[0])
    callback({"i": 0, "x": small, "denoised": clean})
    for i in range(1, steps):
        base, share = update(small, clean, levels[i - 1], levels[i])
        new = clean_of(base, levels[i])
        small, clean = base + share / 2 * (new - clean), new
        if i == steps - 1:
            small, _ = update(small, clean, levels[i], levels[i + 1])
        callback({"i": i, "x": small, "denoised": clean})
    return small / shrink(levels[-1])


def explicit_unipc(levels: Tensor, extra: float) -> list[Tensor]:
    """Returns every x that the model receives, then the result.

    `extra` is the extra noise at the start, as a fraction of the first noise level. The predicted x and the corrected x
    of a step are both blended, at the same noise level. The corrected x is blended in the callback. The last corrected
    x is not blended, because the sampler has already made its final step when it calls the callback.
    """

    def blend(x: Tensor, sigma: Tensor) -> Tensor:
        c1 = skip_weight(float(sigma_to_t(sigma)), EXPONENT)
        return (1 - c1) * x + c1 * (ANCHOR + sigma * NOISE)

    x = ANCHOR + levels[0] * NOISE * (1 + extra)
    seen, clean, last = [x], denoise(x, levels[0]), len(levels) - 2
    for i, (sigma, target) in enumerate(pairwise(levels[:-1]), start=1):
        base, share = step(x, clean, sigma, target)
        predicted = blend(base, target)
        seen.append(predicted)
        new = denoise(predicted, target)
        x, clean = base + share / 2 * (new - clean), new
        x = blend(x, target) if i < last else x
    return [*seen, step(x, clean, levels[-2], levels[-1])[0]]


def drive(levels: Tensor, detector: StepDetector, extra: float) -> list[Tensor]:
    """Runs `host_unipc` with a StageRun, as in the webui. Returns every x that the model receives, then the result."""
    settings = Settings(cosine_scale_1=EXPONENT, extra_noise=extra)
    run = StageRun(STAGE, settings, ANCHOR, NOISE, SamplerTraits(VarianceExploding(sigma_to_t), detector))
    seen = []

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        x = x.clone() if detector.copies_x else x
        run.before_call(x, sigma)
        seen.append(x.clone())
        return denoise(x, sigma)

    def callback(d: dict[str, Any]) -> None:
        run.after_step(d["i"], d["x"], d["denoised"])

    x = torch.zeros_like(ANCHOR)
    if detector.copies_x:
        run.start(x, levels[0])
    made = host_unipc(model, x, levels, callback)
    return [*seen, made]


@pytest.mark.parametrize("steps", [2, 3, 12])
@pytest.mark.parametrize("extra", [0.0, 0.15])
def test_unipc_equals_the_explicit_loop(steps: int, extra: float) -> None:
    levels = LEVELS[-steps - 1 :]
    actual = drive(levels, make_detector("sample_unipc", levels), extra)
    assert relative_error(actual, explicit_unipc(levels, extra)) < 1e-9


def test_unipc_needs_its_own_step_detector() -> None:
    actual = drive(LEVELS, StepDetector(), 0.0)
    assert relative_error(actual[-1:], explicit_unipc(LEVELS, 0.0)[-1:]) > 1e-2
