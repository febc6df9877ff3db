"""Compares the displayed remaining time with the real one, on a simulated clock with the times of a GPU."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import k_diffusion.external
import k_diffusion.sampling
import pytest
import torch
from fusing import evaluations
from modules import paths_internal, shared
from test_sampler_steps import denoise
from tiny import alphas_cumprod
from torch import Tensor

from lib_demofusion.host.progress import bar, timing, webui_state
from lib_demofusion.host.progress.timing import StageProgress
from lib_demofusion.host.sampling.stage_setup import CallsOfStage
from lib_demofusion.method.plan import Plan, StagePlan, make_plan
from lib_demofusion.method.residual import VarianceExploding
from lib_demofusion.method.sampler_steps import StepDetector
from lib_demofusion.method.schedule import schedule_steps, steps_of_stage
from lib_demofusion.method.stage import SamplerTraits, StageRun
from lib_demofusion.method.views import Size
from lib_demofusion.settings.fields import PIXELS, Settings
from lib_demofusion.settings.reading import parse_settings

STEPS = 20
BASE = 16
"""Side of the base image in cells. Each cell represents 8x8 cells of SDXL, so that samplers run quickly."""
SECONDS_A_CELL = 0.25 / BASE**2
SECONDS_A_BATCH = 0.01
"""Matches SDXL on a card of 2020: a quarter of a second per evaluation."""
TILES = 9
"""The number of tiles of a decoded image, if it is decoded in tiles."""

WRAPPER = k_diffusion.external.CompVisDenoiser(SimpleNamespace(alphas_cumprod=alphas_cumprod().float()))
ENDS = WRAPPER.sigmas[0].item(), WRAPPER.sigmas[-1].item()
SCHEDULES: dict[str, Callable[[int], Tensor]] = {
    "model's own": WRAPPER.get_sigmas,
    "karras": lambda n: k_diffusion.sampling.get_sigmas_karras(n, *ENDS),
    "exponential": lambda n: k_diffusion.sampling.get_sigmas_exponential(n, *ENDS),
}
ONE_CALL = ("euler", "euler_ancestral", "lms", "dpmpp_2m", "dpmpp_2m_sde", "dpm_fast")
TWO_CALLS = ("heun", "dpm_2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde")
UNKNOWN = ("dpm_adaptive",)


class Part(NamedTuple):
    """The base (stage 0) or a stage of an iteration, including its decoding. Both are counted from 0."""

    iteration: int
    stage: int


class Clock:
    """A clock that does not run by itself."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    time = perf_counter


class Run:
    """Follows the parts of a job as the webui and the extension do, with k-diffusion's own functions.

    The clock moves with the number of evaluated cells. `twice` evaluates conds and unconds one after the other.
    """

    def __init__(self, settings: Settings, sampler: str, schedule: str = "karras", decoder: float = 2.0):
        self.settings, self.sampler, self.schedule = settings, f"sample_{sampler}", schedule
        self.second_order = sampler in TWO_CALLS
        self.decoder = decoder * SECONDS_A_CELL
        model = SimpleNamespace(sd_checkpoint_info=SimpleNamespace(name_for_extra="one"))
        self.p = SimpleNamespace(n_iter=1, steps=STEPS, batch_size=1, sampler_name=sampler, sd_model=model)
        self.plan: Plan = make_plan(settings, (BASE, BASE))
        self.clock = Clock()
        self.twice = False
        self.waves = 0.0
        """The strength of the oscillation in a stage's predictions as the noise falls.

        It makes DPM adaptive's steps short.
        """
        self.at_once = False
        self.iterations = 1
        self.cells = 1
        """Number of requests of a grid."""
        self.off: set[int] = set()
        """The requests of the grid without stages."""
        self.iteration = 0
        self.told: list[tuple[Part, float, float]] = []
        """The part, the time, and the progress that the webui computes."""
        self.spans: dict[Part, tuple[float, float]] = {}

    def go(self) -> Run:
        self.p.n_iter = self.iterations
        with pytest.MonkeyPatch.context() as patch:
            for module in (timing, bar):
                patch.setattr(module, "time", self.clock)
            patch.setattr(bar, "calls_twice", lambda sampler: self.second_order)
            shared.state.begin("test")
            shared.state.time_start = self.clock.time()
            # as the host does before its first iteration
            shared.state.job_count = self.iterations * self.cells
            for cell in range(self.cells):
                self._request(cell)
            self.whole = shared.state.progress()
        return self

    def _request(self, cell: int) -> None:
        if cell in self.off:
            webui_state.withdraw()
            for _ in range(self.iterations):
                self._base()
                shared.state.nextjob()
            return
        passes = [(STEPS, self.plan.base)]
        pictures = len(self.plan.stages) * self.settings.return_stages
        progress = bar.make_progress(self.p, self.plan, self.settings, pictures, passes)
        progress.announce(self.p)
        for number in range(self.iterations):
            self.iteration = cell * self.iterations + number
            self._iteration(progress)

    def _iteration(self, progress: bar.Progress) -> None:
        enlarged = self.settings.anchor == PIXELS
        decoding, encoding = (partial(progress.move, part) for part in (bar.DECODING, bar.ENCODING))
        self._base()
        progress.base_done()
        for stage in self.plan.stages:
            progress.begin(stage)
            before = stage.number - 1
            if self.settings.return_stages or enlarged:
                self._decode(before, decoding)
            if enlarged:
                self._in_parts(before, 0.44 * self.decoder * math.prod(stage.size), encoding)
            self._stage(stage, progress)
        progress.sampled()
        self._decode(len(self.plan.stages), decoding)
        progress.end()
        shared.state.nextjob()

    def _base(self) -> None:
        self.of_base = 0

        def call(level: Tensor) -> None:
            self.of_base += 1
            for _ in range(1 + self.twice):
                self._evaluate(0, 1, math.prod(self.plan.base), lambda cells: None)

        self._sample(0, STEPS, STEPS, call)

    def _stage(self, stage: StagePlan, progress: bar.Progress) -> None:
        whole = schedule_steps(STEPS, self.settings)
        steps = steps_of_stage(whole, self.settings.denoising_strength)
        space = VarianceExploding(WRAPPER.sigma_to_t)
        anchor = torch.zeros(1, 1, *stage.size)
        run = StageRun(stage, self.settings, anchor, anchor, SamplerTraits(space, StepDetector()))
        arguments = self._arguments(whole, steps)
        self.p.sampler = SimpleNamespace(model_wrap_cfg=SimpleNamespace(step=self.of_base))
        calls = CallsOfStage(self.p, self.sampler, arguments, self.second_order)
        measured = StageProgress(run, calls.ahead)

        def batch(cells: float) -> None:
            measured.before_batch(cells)
            progress.sampling(measured)

        def stepped() -> None:
            measured.after_call()
            progress.sampling(measured)

        def call(level: Tensor) -> None:
            run.before_call(torch.zeros_like(anchor), level)
            count = evaluations(stage, run.weights.dilated)
            # tiles may be smaller than the dilated views
            cells = stage.cells_at(run.weights.dilated) / count
            for _ in range(1 + self.twice):
                # conds and unconds are rows of one call, or of one call each
                self._evaluate(stage.number, count, cells, batch)

        self._sample(stage.number, whole, steps, call, stepped)
        timing.learn(self.p.sd_model, timing.MODEL, measured.rate)
        calls.learn(run.call + 1)

    def _arguments(self, whole: int, steps: int) -> dict[str, Any]:
        sigmas = SCHEDULES[self.schedule](whole)[-steps - 1 :]
        names = inspect.signature(getattr(k_diffusion.sampling, self.sampler)).parameters
        given = {"sigmas": sigmas, "sigma_min": sigmas[-2].item(), "sigma_max": sigmas[0].item(), "n": steps}
        return {name: value for name, value in given.items() if name in names}

    def _sample(
        self, number: int, whole: int, steps: int, call: Callable[[Tensor], None], stepped: Callable[[], None] = int
    ) -> None:
        begin, state = self.clock.now, shared.state
        state.sampling_step, state.sampling_steps = 0, steps
        function = getattr(k_diffusion.sampling, self.sampler)
        noise = {"noise_sampler": lambda *levels: torch.randn(x.shape, generator=generator)}
        generator = torch.Generator().manual_seed(1)
        x = 14 * torch.randn(1, 1, 4, 4, generator=generator)

        def model(x: Tensor, sigma: Tensor) -> Tensor:
            call(sigma[0])
            waves = self.waves * math.sin(20 * math.log(sigma[0])) if number else 0.0
            return denoise(x, sigma[0]) + waves

        def callback(d: dict[str, Any]) -> None:
            state.sampling_step = min(d["i"], steps - 1)
            stepped()
            self._look(number)

        arguments = self._arguments(whole, steps)
        if "noise_sampler" in inspect.signature(function).parameters:
            arguments.update(noise)
        function(model, x, callback=callback, disable=True, **arguments)
        self.spans[Part(self.iteration, number)] = begin, self.clock.now

    def _evaluate(self, number: int, views: int, cells: float, report: Callable[[float], None]) -> None:
        """Evaluates four views at a time."""
        for first in range(0, views, 4):
            count = min(4, views - first)
            report(count * cells)
            self._look(number)
            self.clock.now += (SECONDS_A_BATCH + SECONDS_A_CELL * count * cells) / (1 + self.twice)

    def _decode(self, number: int, report: Callable[[float], None]) -> None:
        size: Size = self.plan.stages[number - 1].size if number else self.plan.base
        with timing.decoding(self.p, torch.empty(1, 4, *size, device="meta")):
            self._in_parts(number, self.decoder * math.prod(size), report)

    def _in_parts(self, number: int, seconds: float, report: Callable[[float], None]) -> None:
        """Decodes after the sampling of stage `number`, in tiles as for a large image."""
        if self.at_once:
            report(0.5)
        for part in range(TILES):
            self._look(number)
            self.clock.now += seconds / TILES
            if not self.at_once or part + 1 == TILES:
                report((part + 1) / TILES)

    def _look(self, number: int) -> None:
        self.told.append((Part(self.iteration, number), self.clock.now, shared.state.progress()))

    def worst(self, of_all: bool = False) -> float:
        """Returns the largest relative error of the time left after the first fifth of a stage.

        It is relative to the time that is really left, or to the whole time if `of_all` is set. The last fiftieth of
        the whole time counts as one fiftieth, because nobody needs the last seconds of an hour exactly.
        """
        return max(self._errors(of_all))

    def _errors(self, of_all: bool) -> Iterator[float]:
        for part, now, progress in self.told:
            begin, end = self.spans[part]
            left = self.clock.now - now
            if part.stage and now - begin >= 0.2 * (end - begin) and not (self.at_once and self._is_last(part, now)):
                # modules/progress.py
                told = now / progress - now
                yield abs(told - left) / (self.clock.now if of_all else max(left, 0.02 * self.clock.now))

    def _is_last(self, part: Part, now: float) -> bool:
        """Returns whether only one image remains, during whose decoding the bar does not move."""
        return part == (self.iterations - 1, len(self.plan.stages)) and now >= self.spans[part][1]

    def bar(self) -> list[float]:
        return [progress for _, _, progress in self.told]


@pytest.fixture(autouse=True)
def nothing_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Removes all timings. Returns the folder in which new ones will be saved."""
    monkeypatch.setattr(paths_internal, "data_path", str(tmp_path))
    return tmp_path


SETTINGS: dict[str, dict[str, Any]] = {
    "paper, 2x": {"scale": 2},
    "paper, 4x, shown": {"scale": 4, "return_stages": True},
    "balanced, 2x": {"preset": "Balanced", "scale": 2, "hires_steps": 0},
    "balanced, 4x": {"preset": "Balanced", "scale": 4, "upscaler": "Lanczos (pixels)"},
    "fast, 4x, hires steps": {"preset": "Fast", "scale": 4, "upscaler": "Lanczos (pixels)"},
    "low strength": {"scale": 3, "denoising_strength": 0.3},
    "thresholds": {"scale": 3, "skip_views": "0.25,0.25"},
    "hires steps": {"scale": 3, "hires_steps": 10, "denoising_strength": 0.6},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", [*ONE_CALL, *TWO_CALLS])
def test_time_left_is_right_after_a_fifth_of_a_stage(sampler: str, schedule: str, settings: dict[str, Any]) -> None:
    """The error is within a quarter in every stage, until the image is decoded."""
    run = Run(parse_settings(settings), sampler, schedule).go()
    assert run.worst() <= 0.25
    assert run.bar() == sorted(run.bar())
    assert run.whole == pytest.approx(1)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_time_left_if_the_number_of_calls_is_unknown(schedule: str, settings: dict[str, Any]) -> None:
    """For DPM adaptive the limit is a quarter of the whole time.

    A stage may need more or fewer calls than the base pass suggests.
    """
    run = Run(parse_settings(settings), "dpm_adaptive", schedule).go()
    assert run.worst(of_all=True) <= 0.25
    assert run.bar() == sorted(run.bar())
    assert run.whole == pytest.approx(1)


@pytest.mark.parametrize("settings", ["paper, 2x", "balanced, 4x", "fast, 4x, hires steps"])
def test_the_calls_of_dpm_adaptive_are_learned_from_a_stage(settings: str) -> None:
    """The sampler's steps are shorter than in the base pass, as on trained models with dilated views."""
    first, second = (Run(parse_settings(SETTINGS[settings]), "dpm_adaptive") for _ in range(2))
    for run in (first, second):
        run.waves = 0.2
        assert run.go().bar() == sorted(run.bar())
        assert run.whole == pytest.approx(1)
    assert second.worst(of_all=True) <= 0.25
    assert second.worst(of_all=True) < 0.7 * first.worst(of_all=True)


@pytest.mark.parametrize("decoder", [0.4, 20.0])
@pytest.mark.parametrize("settings", ["paper, 2x", "balanced, 4x", "fast, 4x, hires steps", "paper, 4x, shown"])
def test_the_time_of_a_measured_decoder_is_used(settings: str, decoder: float) -> None:
    """The decoder takes a fifth of the default estimate, or ten times as long."""
    first, second = (Run(parse_settings(SETTINGS[settings]), "dpmpp_2m", decoder=decoder) for _ in range(2))
    assert first.go().bar() == sorted(first.bar())
    assert second.go().worst() <= 0.25
    assert first.whole == second.whole == pytest.approx(1)


def test_an_unknown_decoder_is_assumed_as_slow_as_another_checkpoints() -> None:
    """If the stages begin from the latent, the image is decoded only at the end."""
    first, second = (Run(parse_settings(SETTINGS["paper, 2x"]), "dpmpp_2m", decoder=8) for _ in range(2))
    first.go()
    second.p.sd_model.sd_checkpoint_info.name_for_extra = "another"
    assert second.go().worst() <= 0.25


def test_the_estimate_is_wrong_for_a_slow_decoder_that_was_not_measured() -> None:
    """Otherwise the test above would not show that the timing is learned."""
    assert Run(parse_settings(SETTINGS["fast, 4x, hires steps"]), "dpmpp_2m", decoder=20).go().worst() > 0.25


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_time_left_if_cond_and_uncond_are_separate_calls(sampler: str) -> None:
    """This happens with --medvram: a call then evaluates its views twice."""
    run = Run(parse_settings(SETTINGS["balanced, 2x"]), sampler)
    run.twice = True
    assert run.go().worst() <= 0.25
    assert run.bar() == sorted(run.bar())


def test_time_left_in_a_queue_whose_images_are_not_decoded_in_tiles() -> None:
    """The bar does not move during a decode. Here the decoder is three times as slow as the default estimate."""
    first, second = (Run(parse_settings(SETTINGS["balanced, 2x"]), "euler_ancestral", decoder=6) for _ in range(2))
    first.go()
    second.at_once, second.iterations = True, 2
    assert second.go().worst() <= 0.25


def test_the_bar_does_not_move_back_between_iterations() -> None:
    """The timings of the first iteration do not move the bar in the second."""
    run = Run(parse_settings(SETTINGS["balanced, 4x"]), "dpmpp_2m", decoder=20)
    run.iterations = 3
    run.go()
    assert run.bar() == sorted(run.bar())
    assert run.whole == pytest.approx(1)


@pytest.mark.parametrize("iterations", [1, 2])
def test_the_bar_does_not_move_back_between_the_cells_of_a_grid(iterations: int) -> None:
    """The webui counts the images of a grid in advance, so the first request can add the stages of all."""
    first, second = (Run(parse_settings(SETTINGS["balanced, 4x"]), "dpmpp_2m") for _ in range(2))
    first.go()
    second.cells, second.iterations = 3, iterations
    second.go()
    assert second.bar() == sorted(second.bar())
    assert second.whole == pytest.approx(1)


@pytest.mark.parametrize("off", [{0}, {1}, {2}])
def test_the_bar_is_full_at_the_end_of_a_grid_with_a_cell_without_stages(off: set[int]) -> None:
    run = Run(parse_settings(SETTINGS["balanced, 4x"]), "dpmpp_2m")
    run.cells, run.off = 3, off
    run.go()
    assert run.whole == pytest.approx(1)


def test_the_bar_moves_within_a_step() -> None:
    """The bar moves with every batch of views."""
    run = Run(Settings(scale=4), "euler").go()
    in_stage = [progress for part, _, progress in run.told if part.stage == 3]
    batches = STEPS * math.ceil(evaluations(run.plan.stages[-1]) / 4)
    assert len(set(in_stage)) > 0.9 * batches


def test_a_failed_decode_is_not_measured(nothing_seen: Path) -> None:
    run = Run(Settings(), "euler")
    with pytest.raises(MemoryError), timing.decoding(run.p, torch.empty(1, 4, 8, 8)):
        raise MemoryError
    assert not (nothing_seen / timing.FILE).exists()


def test_measured_rates_are_saved(nothing_seen: Path) -> None:
    run = Run(Settings(), "euler", decoder=6.0).go()
    assert json.loads((nothing_seen / timing.FILE).read_text()) == {
        "one on cpu: model": pytest.approx(SECONDS_A_CELL, rel=0.05),
        "one on cpu: decoder": pytest.approx(6 * SECONDS_A_CELL, rel=0.01),
        "* on cpu: decoder": pytest.approx(6 * SECONDS_A_CELL, rel=0.01),
    }
    decoder, model = (timing.known(run.p.sd_model, kind) for kind in (timing.DECODER, timing.MODEL))
    assert decoder
    assert model
    assert decoder / model == pytest.approx(6, rel=0.05)


@pytest.mark.parametrize("decoder", [0.5, 8.0])
def test_the_decoder_is_measured_when_a_stage_begins(decoder: float) -> None:
    """The checkpoint has no timings, and its decoder is much faster or slower than the default estimate."""
    settings = {"preset": "Balanced", "scale": 2, "upscaler": "Lanczos (pixels)"}
    run = Run(parse_settings(settings), "euler", decoder=decoder).go()
    assert run.worst() <= 0.25
    assert run.bar() == sorted(run.bar())
