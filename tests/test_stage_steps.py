"""A stage gets as many steps as its sampler needs: tried on k-diffusion's own functions."""

from __future__ import annotations

import inspect
from typing import Any

import k_diffusion_sampling
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib_demofusion.method.stage_steps import TWO_NEEDED, least_steps, long_enough, steps_of_stage

sampling = k_diffusion_sampling.load()
SIGMAS = sampling.get_sigmas_karras(8, 0.03, 14.6)
NAMES = sorted(name for name in vars(sampling) if name.startswith("sample_"))


def run(name: str, steps: int) -> torch.Tensor:
    """What a sampler makes in the last `steps` steps of a schedule, called as the webui calls it."""
    function = getattr(sampling, name)
    known = inspect.signature(function).parameters
    sigmas = SIGMAS[-steps - 1 :]
    arguments: dict[str, Any] = {
        "sigmas": sigmas,
        "sigma_min": float(sigmas[-2]),
        "sigma_max": float(sigmas[0]),
        "n": steps,
        "eta": 1.0,
        "noise_sampler": lambda *levels: torch.ones(1, 4, 8, 8),
    }
    given_ = {key: value for key, value in arguments.items() if key in known}
    return function(lambda x, sigma: x / (1 + sigma**2), torch.ones(1, 4, 8, 8) * sigmas[0], disable=True, **given_)


@pytest.mark.parametrize("name", [name for name in NAMES if "log_likelihood" not in name])
def test_a_sampler_of_k_diffusion_runs_with_the_least_steps(name: str) -> None:
    assert torch.isfinite(run(name, least_steps(name))).all()


@pytest.mark.parametrize("name", sorted(TWO_NEEDED))
def test_a_step_fewer_is_what_it_raises_at(name: str) -> None:
    with pytest.raises((UnboundLocalError, ValueError)):
        run(name, least_steps(name) - 1)


def test_unipc_needs_its_order() -> None:
    assert [least_steps("unipc", order) for order in (1, 3, 6)] == [4, 4, 6]
    assert least_steps("ddim", 6) == 4


@given(st.integers(1, 150), st.floats(0.05, 1), st.integers(1, 8))
def test_the_schedule_is_as_long_as_it_must_be(steps: int, strength: float, least: int) -> None:
    length = long_enough(steps, strength, least)
    assert steps_of_stage(length, strength) >= least
    assert length == steps or steps_of_stage(length - 1, strength) < least
