"""Tests how many steps a stage runs and at which noise level it begins. The samplers come from k-diffusion."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import k_diffusion_sampling
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_demofusion.method.schedule import (
    TWO_NEEDED,
    StageSteps,
    flow_level,
    least_steps,
    long_enough,
    steps_by_level,
    steps_by_share,
    steps_of_stage,
)

sampling = k_diffusion_sampling.load()
SIGMAS = sampling.get_sigmas_karras(8, 0.03, 14.6)
NAMES = sorted(name for name in vars(sampling) if name.startswith("sample_"))


def run(name: str, steps: int) -> torch.Tensor:
    """Runs the sampler `name` on the last `steps` steps of SIGMAS and returns the result.

    Like the webui, passes only the arguments that the sampler has.
    """
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
def test_a_sampler_of_k_diffusion_runs_with_its_minimum_number_of_steps(name: str) -> None:
    assert torch.isfinite(run(name, least_steps(name))).all()


@pytest.mark.parametrize("name", sorted(TWO_NEEDED.intersection(NAMES)))
def test_a_sampler_fails_with_one_step_fewer_than_its_minimum(name: str) -> None:
    with pytest.raises((UnboundLocalError, ValueError)):
        run(name, least_steps(name) - 1)


def test_unipc_needs_at_least_as_many_steps_as_its_order() -> None:
    assert [least_steps("unipc", order) for order in (1, 3, 6)] == [4, 4, 6]
    assert least_steps("ddim", 6) == 4


@settings(deadline=None)
@given(st.integers(1, 150), st.floats(0.05, 1), st.integers(1, 8))
def test_the_schedule_is_the_shortest_with_the_minimum_number_of_stage_steps(
    steps: int, strength: float, least: int
) -> None:
    length = long_enough(steps, strength, least)
    assert steps_of_stage(length, strength) >= least
    assert length == steps or steps_of_stage(length - 1, strength) < least


def share_levels(steps: int, strength: float, least: int) -> torch.Tensor:
    """Returns the noise levels of a stage that runs the last part of a schedule, computed without lib_demofusion.

    `strength` is the fraction of the schedule's steps that the stage runs. The schedule has at least `steps` steps, and
    more if the stage would otherwise run fewer than `least` steps.
    """
    schedule = steps
    while max(1, round(schedule * strength)) < least:
        schedule += 1
    run = max(1, round(schedule * strength))
    return sampling.get_sigmas_karras(schedule, 0.03, 14.6)[schedule - run :]


@settings(deadline=None)
@given(st.integers(1, 150), st.floats(0.05, 1), st.integers(1, 8))
def test_the_levels_of_a_stage_are_the_last_part_of_the_schedule(steps: int, strength: float, least: int) -> None:
    chosen = steps_by_share(steps, strength, least)
    actual = sampling.get_sigmas_karras(chosen.schedule, 0.03, 14.6)[chosen.schedule - chosen.run :]
    assert torch.equal(actual, share_levels(steps, strength, least))


def flow_schedule(shift: float, power: float = 1.0) -> Callable[[int], torch.Tensor]:
    """Returns a function of the number of steps. The function returns the noise levels of a flow model with this shift.

    With a `power` of 1, the levels are uniform before the shift. Other values imitate schedulers with other spacings.
    """

    def levels(steps: int) -> torch.Tensor:
        u = torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** power
        return shift * u / (1 + (shift - 1) * u)

    return levels


SHIFTS = [1.0, 3.0, math.exp(1.15), 6.0, 9.0, 12.0]


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("strength", [0.25, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("steps", [8, 12, 20, 50])
def test_a_strength_gives_the_same_noise_level_at_every_shift(shift: float, strength: float, steps: int) -> None:
    """The best length of the schedule has a closed form if the levels are uniform before the shift `a` is applied.

    The last n steps begin at level s if the schedule has n (a - (a - 1) s) / s steps.
    """
    levels = flow_schedule(shift)
    chosen = steps_by_level(steps, strength, 1, levels)
    wanted = flow_level(1000 * strength)
    assert chosen.run == steps_of_stage(steps, strength)
    exact = chosen.run * (shift - (shift - 1) * wanted) / wanted
    assert chosen.schedule in (math.floor(exact), math.ceil(exact))
    spacing = float(levels(chosen.schedule).diff().abs().max())
    assert abs(float(levels(chosen.schedule)[chosen.schedule - chosen.run]) - wanted) < spacing


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("power", [0.75, 1.0, 1.5])
@pytest.mark.parametrize(("steps", "strength", "least"), [(20, 0.5, 1), (12, 0.25, 1), (7, 0.3, 4), (31, 0.9, 1)])
def test_no_other_schedule_length_begins_closer_to_the_level(
    shift: float, power: float, steps: int, strength: float, least: int
) -> None:
    """Compares the chosen length with all lengths below twice this length, for three spacings of the noise levels."""
    levels, wanted = flow_schedule(shift, power), flow_level(1000 * strength)
    chosen = steps_by_level(steps, strength, least, levels)
    assert chosen.run == max(steps_of_stage(steps, strength), least)
    distance = abs(float(levels(chosen.schedule)[chosen.schedule - chosen.run]) - wanted)
    for length in range(chosen.run, 2 * chosen.schedule):
        assert distance <= abs(float(levels(length)[length - chosen.run]) - wanted) + 1e-12


def test_full_strength_begins_at_the_start_of_the_schedule() -> None:
    assert steps_by_level(20, 1.0, 1, flow_schedule(9.0)) == StageSteps(20, 20)
    assert steps_by_level(1, 1.0, 2, flow_schedule(9.0)) == StageSteps(2, 2)


def test_levels_that_a_scheduler_drops_are_compensated_for() -> None:
    """Forge's Beta scheduler drops a level that equals another level after rounding.

    The schedule then has fewer levels than requested. The stage must still run 10 steps, and begin at the level that
    belongs to a strength of 0.5.
    """

    def levels(steps: int) -> torch.Tensor:
        made = flow_schedule(3.0)(steps)
        return torch.cat([made[:1], made[2:]])

    chosen = steps_by_level(20, 0.5, 1, levels)
    run = levels(chosen.schedule)[chosen.schedule - chosen.run :]
    assert len(run) - 1 == 10
    assert float(run[0]) == pytest.approx(flow_level(500), abs=0.03)


def test_the_schedule_is_not_lengthened_if_no_length_reaches_the_level() -> None:
    chosen = steps_by_level(20, 0.3, 1, lambda steps: [1.0] * steps + [0.0])
    assert chosen == StageSteps(6, 6)
