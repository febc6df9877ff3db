"""The time left that the webui tells, from a clock that runs as a card would, against the time that is left."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import k_diffusion.external
import k_diffusion.sampling
import pytest
import torch
from modules import shared
from tiny import alphas_cumprod

from lib_demofusion.costs import StageClock
from lib_demofusion.forecast import call_cells, steps_of_stage
from lib_demofusion.host.progress import make_progress
from lib_demofusion.plan import Plan, StagePlan, make_plan
from lib_demofusion.sampler_calls import call_levels
from lib_demofusion.schedule import weights_at
from lib_demofusion.settings import Settings

STEPS = 30
SECONDS_A_CELL = 0.25 / 128**2
SECONDS_A_BATCH = 0.01
"""SDXL on a card of 2020: a quarter of a second an evaluation."""

WRAPPER = k_diffusion.external.CompVisDenoiser(SimpleNamespace(alphas_cumprod=alphas_cumprod().float()))
SAMPLERS = {
    "Euler": ("sample_euler", False),
    "DPM++ 2M": ("sample_dpmpp_2m", True),
    "DPM++ SDE": ("sample_dpmpp_sde", True),
    "Heun": ("sample_heun", False),
}
"""Functions, and whether their schedule is that of Karras."""


def timesteps(sampler: str, steps: int) -> list[float]:
    """Those of a stage's model calls, in the last `steps` steps of the schedule."""
    name, karras = SAMPLERS[sampler]
    ends = WRAPPER.sigmas[0].item(), WRAPPER.sigmas[-1].item()
    sigmas = k_diffusion.sampling.get_sigmas_karras(STEPS, *ends) if karras else WRAPPER.get_sigmas(STEPS)
    levels = call_levels(name, {"sigmas": sigmas[-steps - 1 :]})
    assert levels is not None
    return [float(WRAPPER.sigma_to_t(level.reshape(1))) for level in levels]


class Run:
    """Goes through the parts of a job as the webui and the extension do; only time passes."""

    def __init__(self, settings: Settings, sampler: str, decode: float, known: bool = True):
        self.settings, self.sampler, self.known = settings, sampler, known
        self.decode = decode * SECONDS_A_CELL
        self.plan: Plan = make_plan(settings, (128, 128))
        self.now = 0.0
        self.told: list[tuple[int, float, float]] = []
        """Stage, time, and progress as the webui reckons it."""
        self.spans: dict[int, tuple[float, float]] = {}

    def go(self) -> None:
        p = SimpleNamespace(n_iter=1, steps=STEPS, sampler_name=self.sampler)
        state = shared.state
        state.begin("test")
        progress = make_progress(p, self.plan, self.settings, self.settings.return_stages, 1.0)
        progress.announce(p)
        self._sample(0, timesteps(self.sampler, STEPS), STEPS, lambda t: [(1, 128**2)], lambda *_: None)
        progress.base_done()
        for stage in self.plan.stages:
            if self.settings.return_stages:
                self._pass(self.decode * math.prod(self._size(stage.number - 1)))
            progress.begin(stage)
            self._stage(stage, progress)
        progress.sampled()
        self._pass(self.decode * math.prod(self._size(len(self.plan.stages))))
        progress.end()
        state.nextjob()
        self.whole = state.progress()

    def _size(self, number: int) -> tuple[int, int]:
        return self.plan.stages[number - 1].size if number else self.plan.base

    def _stage(self, stage: StagePlan, progress: Any) -> None:
        steps = steps_of_stage(STEPS, self.settings.strength)
        levels = timesteps(self.sampler, steps)
        clock = StageClock(call_cells(stage, levels, self.settings) if self.known else None)

        def views(t: float) -> list[tuple[int, int]]:
            c2 = weights_at(t, self.settings).dilated
            count = stage.evaluations_at(c2)
            return [(min(4, count - first), 128**2) for first in range(0, count, 4)]

        def report(call: int, t: float, cells: int) -> None:
            progress.advance(clock.share(call, t, cells))

        self._sample(stage.number, levels, steps, views, report)

    def _sample(self, number: int, levels: list[float], steps: int, views: Any, report: Any) -> None:
        begin, state = self.now, shared.state
        state.sampling_step, state.sampling_steps = 0, steps
        for call, t in enumerate(levels):
            for count, cells in views(t):
                report(call, t, count * cells)
                self.told.append((number, self.now, state.progress()))
                self._pass(SECONDS_A_BATCH + SECONDS_A_CELL * count * cells)
            # a second call comes behind the callback of its step
            state.sampling_step = min(call * steps // len(levels), steps - 1)
        self.spans[number] = begin, self.now

    def _pass(self, seconds: float) -> None:
        self.now += seconds

    def errors(self) -> Iterator[tuple[float, float]]:
        """The error of the time left, as a share of it, and the time left as a share of the whole."""
        for number, now, progress in self.told:
            begin, end = self.spans[number]
            if number and now - begin >= 0.1 * (end - begin):
                left = self.now - now
                yield abs(now / progress - now - left) / left, left / self.now


THRESHOLDS = [(0.0, 0.0), (0.2, 0.0), (0.0, 0.2), (0.4, 0.4)]


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("thresholds", THRESHOLDS)
@pytest.mark.parametrize(("scale", "strength"), [(2, 1.0), (2, 0.3), (3, 0.6), (4, 1.0)])
@pytest.mark.parametrize("pictures", [False, True])
def test_time_left_is_right_after_a_tenth_of_a_stage(
    sampler: str, thresholds: tuple[float, float], scale: float, strength: float, pictures: bool
) -> None:
    """Within a fifth to the end of the last stage, where the decoder is as fast as reckoned.

    Where it takes half or one and a half times as long, that shows in the last fifth of a run, when little else is
    left: it is never a tenth of the whole.
    """
    gates = {"dilated_threshold": thresholds[0], "local_threshold": thresholds[1]}
    settings = Settings(scale=scale, strength=strength, return_stages=pictures, **gates)
    for decode in (1.0, 2.0, 3.0):
        run = Run(settings, sampler, decode)
        run.go()
        errors = list(run.errors())
        assert errors
        last = 0.0 if decode == 2.0 else 0.2
        assert max(error for error, left in errors if left > last) <= 0.2
        assert max(error * left for error, left in errors) <= 0.08
        assert run.whole == pytest.approx(1)


@pytest.mark.parametrize("thresholds", THRESHOLDS)
def test_the_bar_never_goes_back(thresholds: tuple[float, float]) -> None:
    run = Run(Settings(scale=3, dilated_threshold=thresholds[0], local_threshold=thresholds[1]), "DPM++ SDE", 2.0)
    run.go()
    told = [progress for _, _, progress in run.told]
    assert told == sorted(told)
    assert told[0] == 0.0
    assert told[-1] < 1.0


def test_an_unknown_number_of_calls_still_comes_to_an_end() -> None:
    run = Run(Settings(scale=3), "Euler", 2.0, known=False)
    run.go()
    told = [progress for _, _, progress in run.told]
    assert told == sorted(told)
    assert run.whole == pytest.approx(1)


def test_conds_and_unconds_one_after_the_other() -> None:
    """A call then evaluates its views twice; from the second call on the bar follows."""
    clock = StageClock([8, 8, 8])
    shares = [clock.share(call, 0.0, 4) for call in range(3) for _ in range(4)]
    assert shares == sorted(shares)
    assert shares[4:] == pytest.approx([(8 + i * 2) / 24 for i in range(8)])


def test_the_clock_counts_cells_not_calls() -> None:
    clock = StageClock([2, 6])
    assert [clock.share(0, 0.0, 2), clock.share(1, 0.0, 3), clock.share(1, 0.0, 3)] == [0.0, 0.25, 0.625]
    assert clock.share(2, 0.0, 1) == 1.0
    assert torch.isfinite(torch.tensor(StageClock([]).share(0, 0.0, 1)))
