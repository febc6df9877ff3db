"""The time left that the webui tells, from a clock that runs as a card would, against the time that is left."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import k_diffusion.external
import k_diffusion.sampling
import pytest
import torch
from autoencoders import Decoder, Encoder
from modules import paths_internal, shared
from tiny import alphas_cumprod
from torch.utils.flop_counter import FlopCounterMode

from lib_demofusion.host.progress import timing
from lib_demofusion.host.progress.bar import make_progress
from lib_demofusion.method.plan import Plan, StagePlan, make_plan
from lib_demofusion.method.schedule import weights_at
from lib_demofusion.method.stage_steps import steps_of_stage
from lib_demofusion.method.views import Size
from lib_demofusion.progress.costs import StageClock, decoder_work, encoder_work, reckoned_decoding
from lib_demofusion.progress.forecast import call_cells, schedule_steps
from lib_demofusion.progress.sampler_calls import call_levels
from lib_demofusion.settings.fields import PIXELS, Settings

STEPS = 30
SECONDS_A_CELL = 0.25 / 128**2
SECONDS_A_BATCH = 0.01
"""SDXL on a card of 2020: a quarter of a second an evaluation."""

TILES = 9
"""Parts of a picture that is decoded."""

WRAPPER = k_diffusion.external.CompVisDenoiser(SimpleNamespace(alphas_cumprod=alphas_cumprod().float()))
SAMPLERS = {
    "Euler": ("sample_euler", False),
    "DPM++ 2M": ("sample_dpmpp_2m", True),
    "DPM++ SDE": ("sample_dpmpp_sde", True),
    "Heun": ("sample_heun", False),
}
"""Functions, and whether their schedule is that of Karras."""


def timesteps(sampler: str, steps: int, whole: int = STEPS) -> list[float]:
    """Those of a stage's model calls, in the last `steps` steps of a schedule of `whole`."""
    name, karras = SAMPLERS[sampler]
    ends = WRAPPER.sigmas[0].item(), WRAPPER.sigmas[-1].item()
    sigmas = k_diffusion.sampling.get_sigmas_karras(whole, *ends) if karras else WRAPPER.get_sigmas(whole)
    levels = call_levels(name, {"sigmas": sigmas[-steps - 1 :]})
    assert levels is not None
    return [float(WRAPPER.sigma_to_t(level.reshape(1))) for level in levels]


def as_reckoned(size: Size) -> float:
    """Seconds of a decoder that takes as long as is taken for granted of one never seen."""
    return SECONDS_A_CELL * reckoned_decoding(size)


def quick(size: Size) -> float:
    """Half precision, and an attention that costs nothing."""
    return 0.4 * SECONDS_A_CELL * math.prod(size)


def slow(size: Size) -> float:
    """Several times as long as reckoned, and much longer again where a picture no longer fits and is taken apart."""
    return (6 if math.prod(size) <= 256**2 else 30) * SECONDS_A_CELL * math.prod(size)


DECODERS = [as_reckoned, quick, slow]


class Run:
    """Goes through the parts of a job as the webui and the extension do; only time passes."""

    def __init__(self, settings: Settings, sampler: str, decoder: Callable[[Size], float], known: bool = True):
        self.settings, self.sampler, self.known = settings, sampler, known
        self.decoder = decoder
        model = SimpleNamespace(sd_checkpoint_info=SimpleNamespace(name_for_extra="one"))
        self.p = SimpleNamespace(n_iter=1, steps=STEPS, sampler_name=sampler, sd_model=model, cfg_scale=7)
        self.plan: Plan = make_plan(settings, (128, 128))
        self.now = 0.0
        self.told: list[tuple[int, float, float]] = []
        """Stage, time, and progress as the webui reckons it."""
        self.spans: dict[int, tuple[float, float]] = {}

    def go(self) -> None:
        p, state = self.p, shared.state
        state.begin("test")
        # as the host does before its first iteration
        state.job_count = p.n_iter
        progress = make_progress(p, self.plan, self.settings, self.settings.return_stages, [(STEPS, self.plan.base)])
        progress.announce(p)
        self._sample(0, timesteps(self.sampler, STEPS), STEPS, lambda t: [(1, 128**2)], lambda *_: None)
        progress.base_done()
        for stage in self.plan.stages:
            progress.begin(stage)
            before = stage.number - 1
            if self.settings.return_stages or self.settings.anchor == PIXELS:
                self._decode(before, progress.decoding)
            if self.settings.anchor == PIXELS:
                # an encoder that is as much quicker as it has fewer operations
                quicker = encoder_work(stage.size) / decoder_work(stage.size)
                self._in_parts(before, self.decoder(stage.size) * quicker, progress.encoding)
            self._stage(stage, progress)
        progress.sampled()
        self._decode(len(self.plan.stages), progress.decoding)
        progress.end()
        state.nextjob()
        self.whole = state.progress()

    def _size(self, number: int) -> Size:
        return self.plan.stages[number - 1].size if number else self.plan.base

    def _stage(self, stage: StagePlan, progress: Any) -> None:
        whole = schedule_steps(STEPS, self.settings)
        steps = steps_of_stage(whole, self.settings.strength)
        levels = timesteps(self.sampler, steps, whole)
        clock = StageClock(call_cells(stage, levels, self.settings) if self.known else None)

        def views(t: float) -> list[tuple[int, int]]:
            c2 = weights_at(t, self.settings).dilated
            count = stage.evaluations_at(c2)
            return [(min(4, count - first), 128**2) for first in range(0, count, 4)]

        with timing.measured(self.p, lambda: self.now) as watch:
            seen: list[int] = []

            def report(call: int, t: float, cells: int) -> None:
                if call not in seen:
                    seen.append(call)
                    watch.begin_call(sum(count * size for count, size in views(t)))
                progress.sampling(clock.share(call, t, cells))

            self._sample(stage.number, levels, steps, views, report)

    def _decode(self, number: int, report: Callable[[float], None]) -> None:
        size = self._size(number)
        with timing.decoding(self.p, torch.empty(1, 4, *size, device="meta"), lambda: self.now):
            self._in_parts(number, self.decoder(size), report)

    def _in_parts(self, number: int, seconds: float, report: Callable[[float], None]) -> None:
        """What comes behind the sampling of stage `number`, in parts as the decoder works on a large picture."""
        for part in range(TILES):
            self.told.append((number, self.now, shared.state.progress()))
            self._pass(seconds / TILES)
            report((part + 1) / TILES)

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


@pytest.fixture(autouse=True)
def rates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> timing.Rates:
    """A machine on which nothing was seen so far."""
    monkeypatch.setattr(paths_internal, "data_path", str(tmp_path))
    fresh = timing.Rates()
    monkeypatch.setattr(timing, "RATES", fresh)
    return fresh


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("thresholds", THRESHOLDS)
@pytest.mark.parametrize(
    ("scale", "strength", "extras"),
    [(2, 1.0, {}), (2, 0.3, {"anchor": PIXELS}), (3, 0.6, {"return_stages": True}), (4, 1.0, {}),
     (4, 0.7, {"anchor": PIXELS, "stages": "fewest"}), (4, 0.6, {"anchor": PIXELS, "stage_steps": 10})],
)  # fmt: skip
@pytest.mark.parametrize("decoder", DECODERS)
def test_time_left_is_right_after_a_tenth_of_a_stage(
    sampler: str, thresholds: tuple[float, float], scale: float, strength: float, extras: Any, decoder: Any
) -> None:
    """Within a fifth, to the end of the last stage; where the decoder takes another time than is reckoned, it is so
    from the second run on.
    """
    gates = {"dilated_threshold": thresholds[0], "local_threshold": thresholds[1]}
    settings = Settings(scale=scale, strength=strength, **gates, **extras)
    if decoder is not as_reckoned:
        Run(settings, sampler, decoder).go()
    run = Run(settings, sampler, decoder)
    run.go()
    errors = list(run.errors())
    assert errors
    assert max(error for error, _ in errors) <= 0.2
    assert run.whole == pytest.approx(1)


def test_a_decoder_never_seen_is_wrong_by_its_own_time_at_most() -> None:
    run = Run(Settings(scale=2), "Euler", slow)
    run.go()
    unknown = slow((256, 256)) - as_reckoned((256, 256))
    assert unknown > 0
    assert max(error * left * run.now for error, left in run.errors()) <= unknown + 0.05 * run.now


def reckoned(size: Size) -> float:
    return timing.decoding_cells(Run(Settings(), "Euler", quick).p, size)


def test_the_decoders_time_is_that_of_the_nearest_size_seen(rates: timing.Rates, tmp_path: Path) -> None:
    assert reckoned((64, 64)) == reckoned_decoding((64, 64))
    rates.learn("one", True, 0.001)
    rates.learn_decoder("one", (64, 64), 0.002)
    rates.learn_decoder("one", (256, 256), 0.005)
    rates.learn_decoder("two", (128, 128), 0.1)
    for known in (rates, timing.Rates()):
        assert known.of_decoder("one", (70, 60)) == known.of_decoder("one", (32, 32)) == 0.002
        assert known.of_decoder("one", (200, 300)) == known.of_decoder("one", (999, 999)) == 0.005
    assert reckoned((64, 64)) == pytest.approx(2 * decoder_work((64, 64)))
    assert set(json.loads((tmp_path / timing.FILE).read_text()).values()) == {0.001, 0.002, 0.005, 0.1}


def test_a_failed_decode_teaches_nothing(rates: timing.Rates) -> None:
    run = Run(Settings(), "Euler", quick)
    with pytest.raises(MemoryError), timing.decoding(run.p, torch.empty(1, 4, 8, 8)):
        raise MemoryError
    assert rates.of_decoder("one", (8, 8)) is None


@pytest.mark.parametrize("side", [64, 256, 512])
def test_the_autoencoders_work_is_that_of_stable_diffusions(side: int) -> None:
    """Against torch's count of operations, of networks that hold no numbers."""
    with torch.device("meta"):
        decoder, encoder = Decoder(128, groups=32), Encoder(128, groups=32)
        counts = [counted(decoder, (1, 4, n, n)) for n in (32, side)] + [counted(encoder, (1, 3, 8 * side, 8 * side))]
    unit = counts[0] / decoder_work((32, 32))
    assert counts[1] / unit == pytest.approx(decoder_work((side, side)), rel=0.02)
    assert counts[2] / unit == pytest.approx(encoder_work((side, side)), rel=0.02)


def counted(network: torch.nn.Module, shape: tuple[int, ...]) -> int:
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(shape))
    return counter.get_total_flops()


@pytest.mark.parametrize("thresholds", THRESHOLDS)
def test_the_bar_never_goes_back(thresholds: tuple[float, float]) -> None:
    run = Run(
        Settings(scale=3, dilated_threshold=thresholds[0], local_threshold=thresholds[1]), "DPM++ SDE", as_reckoned
    )
    run.go()
    told = [progress for _, _, progress in run.told]
    assert told == sorted(told)
    assert told[0] == 0.0
    assert told[-1] < 1.0


def test_an_unknown_number_of_calls_still_comes_to_an_end() -> None:
    run = Run(Settings(scale=3), "Euler", as_reckoned, known=False)
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
