"""Tests CallGuard, which raises UnknownSampler if a sampler does not fit the detector that is used for the sampler."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from test_sampler_steps import (
    CASES,
    FRACTIONS,
    SIGMAS,
    TIMESTEP_CASES,
    Case,
    drive,
    drive_timesteps,
    host_unipc,
    relative_error,
    sampling,
)
from torch import Tensor

from lib_demofusion.method.sampler_checks import CALLS_DO_NOT_FIT, NOT_ITS_X, CallGuard, UnknownSampler
from lib_demofusion.method.sampler_steps import SkipCalls, StepDetector, make_detector


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_guard_accepts_the_samplers_of_k_diffusion(case: Case) -> None:
    assert relative_error(case.drive(guarded=True), case.drive()) == 0


@pytest.mark.parametrize(("name", "host", "explicit", "timesteps", "eta"), TIMESTEP_CASES[:3])
def test_the_guard_accepts_the_timestep_samplers_of_the_webui(name, host, explicit, timesteps, eta) -> None:
    guarded = drive_timesteps(host, timesteps, make_detector(name), eta, name, guarded=True)
    assert relative_error(guarded, drive_timesteps(host, timesteps, make_detector(name), eta, name)) == 0


def scaled_copy(model, x, sigmas, callback, disable) -> Tensor:
    """Imitates Forge Neo's UniPC, which stores x / sqrt(1 + sigma^2) and passes a rescaled copy to its model."""
    x = x / (1 + sigmas[0] ** 2).sqrt()
    for i, (sigma, target) in enumerate(pairwise(sigmas)):
        scale = (1 + sigma**2).sqrt()
        shown = x * scale
        denoised = model(shown, sigma * x.new_ones(len(x)))
        callback({"x": x, "i": i, "denoised": denoised})
        x = (denoised + target / sigma * (x * scale - denoised)) / (1 + target**2).sqrt()
    return x


def plain_copy(model, x, sigmas, callback, disable) -> Tensor:
    """Passes a copy of x to the model, so a change of this copy has no effect."""
    for i, (sigma, target) in enumerate(pairwise(sigmas)):
        denoised = model(x.clone(), sigma * x.new_ones(len(x)))
        callback({"x": x, "i": i, "denoised": denoised})
        x = denoised + target / sigma * (x - denoised)
    return x


def callback_first(model, x, sigmas, callback, disable) -> Tensor:
    """Makes two model calls in every step except the last, and runs the callback after the first call of a step."""
    return sampling.sample_heun(model, x, sigmas, callback=callback, disable=disable)


def callback_last(model, x, sigmas, callback, disable) -> Tensor:
    """Makes two model calls per step, and runs the callback after the second call with the x of the next step."""
    for i, (sigma, target) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma * x.new_ones(len(x)))
        middle = denoised + (target / sigma) ** 0.5 * (x - denoised)
        again = model(middle, sigma * x.new_ones(len(x)))
        x = again + target / sigma * (x - again)
        callback({"x": x, "i": i, "denoised": denoised})
    return x


def mirrored(model, x, sigmas, callback, disable) -> Tensor:
    """Makes two model calls per step, for x and for -x. Kohaku LoNyu Yog also evaluates -x."""
    for i, (sigma, target) in enumerate(pairwise(sigmas)):
        ones = x.new_ones(len(x))
        denoised = model(x, sigma * ones)
        callback({"x": x, "i": i, "denoised": denoised})
        other = -x
        denoised = (denoised - model(other, sigma * ones)) / 2
        x = denoised + target / sigma * (x - denoised)
    return x


def no_callback(model, x, sigmas, callback, disable) -> Tensor:
    for sigma, target in pairwise(sigmas):
        denoised = model(x, sigma * x.new_ones(len(x)))
        x = denoised + target / sigma * (x - denoised)
    return x


def fewer_calls(model, x, sigmas, callback, disable) -> Tensor:
    """Makes one model call per step. Its detector in MISFITS expects two."""
    return sampling.sample_euler(model, x, sigmas, callback=callback, disable=disable)


def shows_first_x(model, x, sigmas, callback, disable) -> Tensor:
    """Imitates IPNDM and DEIS in Forge, which pass their argument x to every callback instead of the current x."""
    current = x
    for i, (sigma, target) in enumerate(pairwise(sigmas)):
        denoised = model(current, sigma * x.new_ones(len(x)))
        callback({"x": x, "i": i, "denoised": denoised})
        current = denoised + target / sigma * (current - denoised)
    return current


def test_the_guard_accepts_a_sampler_that_passes_its_argument_x_to_every_callback() -> None:
    actual = drive(shows_first_x, StepDetector(), False, guarded=True, sigmas=SIGMAS)
    assert relative_error(actual, drive(sampling.sample_euler, StepDetector(), False, sigmas=SIGMAS)) < 1e-9


MISFITS: list[tuple[Callable[..., Tensor], StepDetector, str]] = [
    (scaled_copy, StepDetector(), NOT_ITS_X),
    (plain_copy, StepDetector(), NOT_ITS_X),
    (callback_first, StepDetector(), CALLS_DO_NOT_FIT),
    (callback_last, StepDetector(), NOT_ITS_X),
    (callback_last, SkipCalls(), NOT_ITS_X),
    (mirrored, StepDetector(), CALLS_DO_NOT_FIT),
    (no_callback, StepDetector(), CALLS_DO_NOT_FIT),
    (fewer_calls, SkipCalls(), CALLS_DO_NOT_FIT),
]
"""Samplers, a detector that does not fit the sampler, and the message of the error."""


@pytest.mark.parametrize(("function", "detector", "message"), MISFITS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_sampler_that_does_not_fit_its_detector_raises_unknown_sampler(
    function: Callable[..., Tensor], detector: StepDetector, message: str
) -> None:
    with pytest.raises(UnknownSampler) as caught:
        drive(function, detector, False, guarded=True, sigmas=SIGMAS)
    assert str(caught.value) == message


@pytest.mark.parametrize("steps", [1, 2])
def test_a_sampler_that_copies_x_is_detected_in_a_stage_of_one_or_two_steps(steps: int) -> None:
    with pytest.raises(UnknownSampler):
        drive(plain_copy, StepDetector(), False, guarded=True, sigmas=SIGMAS[-steps - 1 :])


def test_unipc_with_the_detector_of_other_samplers_raises_unknown_sampler() -> None:
    with pytest.raises(UnknownSampler):
        drive_timesteps(host_unipc, FRACTIONS, StepDetector(), None, "of_tomorrow", guarded=True)


class Unreadable(torch.Tensor):
    """A tensor that raises an error if its values are read. On a GPU, reading a value would wait for the device."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function in (torch.Tensor.data_ptr, torch.Tensor.__len__), function
        return super().__torch_function__(function, types, args, kwargs or {})


def test_the_guard_reads_no_values_of_tensors() -> None:
    x, other = (torch.zeros(2, 3).as_subclass(Unreadable) for _ in range(2))
    guard = CallGuard(x)
    guard.step_begins(x)
    guard.callback(x)
    guard.step_begins(other)
    guard.callback(other)
    guard.end()
