"""The number of model evaluations, told before a run, against those that samplers make."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from test_step_gate import (
    ALPHAS,
    ANCHOR,
    CASES,
    NOISE,
    STAGE,
    Case,
    DrawingTorch,
    Draws,
    denoise,
    double_precision,
    sampling,
    sigma_to_t,
)
from torch import Tensor

from lib_demofusion.method.batching import ViewBatches
from lib_demofusion.method.plan import make_plan
from lib_demofusion.method.residual import NoiseSpace, VarianceExploding, VariancePreserving
from lib_demofusion.method.stage import StageRun
from lib_demofusion.method.step_gate import StepGate
from lib_demofusion.method.views import View
from lib_demofusion.progress.forecast import call_cells, evaluations, even_timesteps, plan_evaluations
from lib_demofusion.progress.sampler_calls import call_levels
from lib_demofusion.settings.fields import Settings

THRESHOLDS = pytest.mark.parametrize("thresholds", [(0.0, 0.0), (0.11, 0.0), (0.0, 0.13), (0.3, 0.2)])
STAGES = make_plan(Settings(scale=3), STAGE.window)


class Counter:
    """Runs one stage of a plan under a model call, and counts views and cells."""

    def __init__(self, settings: Settings, space: NoiseSpace, stage: Any = STAGE):
        noise = torch.zeros(1, 4, *stage.size)
        self.run = StageRun(stage, settings, noise, noise, space, StepGate(), stochastic=False)
        self.views = self.cells = 0
        self.x = torch.zeros(1, 4, *stage.size)

    def call(self, level: Tensor) -> None:
        """A sampler's model call at a level."""
        self.run.before_call(self.x.clone(), level)
        self.run.denoise(self._evaluate, self.x, 1.0, ViewBatches(5))

    def _evaluate(self, crops: Tensor, views: Sequence[View], rows: slice) -> Tensor:
        self.views += len(views)
        self.cells += crops[:, 0].numel()
        return crops


def gated(thresholds: tuple[float, float]) -> Settings:
    return Settings(dilated_threshold=thresholds[0], local_threshold=thresholds[1])


def counted(case: Case, settings: Settings, stage: Any, arguments: dict[str, Any]) -> Counter:
    """What the stage evaluates when k-diffusion's function runs it."""
    counter = Counter(settings, VarianceExploding(sigma_to_t), stage)

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        counter.call(sigma[0])
        return denoise(x, sigma[0])

    draw = Draws()
    given = dict(arguments)
    if "noise_sampler" in inspect.signature(case.function).parameters:
        given["noise_sampler"] = draw
    with mock.patch.object(sampling, "torch", DrawingTorch(draw)), double_precision():
        case.function(model, ANCHOR + 10 * NOISE, callback=lambda d: None, disable=True, **given)
    return counter


def timesteps(levels: Sequence[Tensor] | None, space: NoiseSpace) -> list[float]:
    assert levels is not None
    return [space.read(level)[1] for level in levels]


def cut(arguments: dict[str, Any], steps: int) -> dict[str, Any]:
    """The last steps of the schedule, as a strength below one leaves them."""
    return {**arguments, "sigmas": arguments["sigmas"][-steps - 1 :]} if "sigmas" in arguments else arguments


# the double of Restart in test_step_gate takes a path of its own; the webui's is below
PREDICTABLE = [case for case in CASES if "h_init" not in case.arguments and case.name != "restart_sampler"]


@pytest.mark.parametrize(
    ("steps", "thresholds"), [(12, (0.0, 0.0)), (12, (0.3, 0.2)), (7, (0.11, 0.0)), (7, (0.0, 0.13))]
)
@pytest.mark.parametrize("case", PREDICTABLE, ids=str)
def test_the_forecast_is_what_k_diffusion_evaluates(case: Case, steps: int, thresholds: tuple[float, float]) -> None:
    """In every stage of a plan, at full strength and below, to the view."""
    settings, arguments = gated(thresholds), cut(case.inputs, steps)
    with double_precision():
        ahead = timesteps(call_levels(case.name, arguments), VarianceExploding(sigma_to_t))
    counters = [counted(case, settings, stage, arguments) for stage in STAGES.stages]
    for stage, counter in zip(STAGES.stages, counters):
        assert counter.views == evaluations(stage, ahead, settings)
        assert counter.cells == sum(call_cells(stage, ahead, settings))
    assert plan_evaluations(STAGES, ahead, settings) == sum(counter.views for counter in counters)


def test_thresholds_save_evaluations() -> None:
    """Else the comparison above would say nothing of them."""
    case = next(case for case in CASES if case.name == "sample_heun")
    ahead = timesteps(call_levels(case.name, case.inputs), VarianceExploding(sigma_to_t))
    costs = [plan_evaluations(STAGES, ahead, gated(pair)) for pair in ((0, 0), (0.11, 0), (0, 0.13), (0.3, 0.2))]
    assert costs[0] > costs[1] > costs[3]
    assert costs[0] > costs[2] > costs[3]


@pytest.mark.parametrize("churn", [3.0, 30.0])
@pytest.mark.parametrize("name", ["sample_euler", "sample_heun", "sample_dpm_2"])
def test_levels_under_churn(name: str, churn: float) -> None:
    """It acts between two levels only."""
    case = next(case for case in CASES if case.name == name)
    arguments = {**case.inputs, "s_churn": churn, "s_tmin": 0.1, "s_tmax": 5.0}
    seen = []

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(float(sigma[0]))
        return denoise(x, sigma[0])

    case.function(model, ANCHOR, disable=True, **arguments)
    assert [float(level) for level in call_levels(name, arguments)] == seen


def test_what_depends_on_the_picture_is_not_told() -> None:
    assert call_levels("sample_dpm_adaptive", {"sigma_min": 0.03, "sigma_max": 14.6}) is None
    assert call_levels("unipc", {"timesteps": torch.arange(9), "skip_type": "logSNR"}) is None
    assert call_levels("sample_of_tomorrow", {}) is None


def test_unknown_samplers_are_told_by_their_order() -> None:
    sigmas = torch.tensor([3.0, 2.0, 1.0, 0.0])
    assert [float(level) for level in call_levels("sample_of_tomorrow", {"sigmas": sigmas})] == [3, 2, 1]
    assert [float(level) for level in call_levels("of_tomorrow", {"sigmas": sigmas}, True)] == [3, 2, 2, 1, 1]


def test_even_timesteps() -> None:
    assert even_timesteps(4) == pytest.approx([999, 666, 333, 0])
    assert even_timesteps(4, 0.5) == pytest.approx([333, 0])
    assert even_timesteps(3, two_calls=True) == [999, 749.25, 499.5, 249.75, 0]
    assert even_timesteps(1) == [999]
    assert even_timesteps(10, 0.01) == [0]


@THRESHOLDS
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_even_timesteps_are_those_of_the_models_own_schedule(thresholds: tuple[float, float], strength: float) -> None:
    """What the panel says is exact there: sigmas whose timesteps fall evenly, and zero."""
    settings, steps = gated(thresholds), 20
    ahead = even_timesteps(steps, strength)
    table = ((1 - ALPHAS) / ALPHAS).sqrt().log()

    def sigma_of(t: float) -> float:
        return math.exp(torch.lerp(table[math.floor(t)], table[math.ceil(t)], t - math.floor(t)))

    def to_t(sigma: Tensor) -> Tensor:
        position = torch.searchsorted(table, sigma.log()).clamp(1, 999)
        low, high = table[position - 1], table[position]
        return (position - 1 + (sigma.log() - low) / (high - low)).clamp(0, 999)

    counter = Counter(settings, VarianceExploding(to_t))
    sigmas = torch.tensor([*(sigma_of(t) for t in ahead), 0.0], dtype=torch.float64)
    sampling.sample_euler(lambda x, s: (counter.call(s[0]), x)[1], ANCHOR, sigmas, disable=True)
    assert counter.views == evaluations(STAGE, ahead, settings)


def host_functions(folder: Path, file: str, **names: Any) -> dict[str, Any]:
    """The functions and classes of a file of the webui without its imports, which would load all of the webui."""
    tree = ast.parse((folder / "modules" / file).read_text(encoding="utf-8"))
    body = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    scope = {
        "torch": torch,
        "tqdm": SimpleNamespace(trange=lambda n, disable: range(n), tqdm=lambda x, **_: x),
        **names,
    }
    exec(compile(ast.Module(list(body), []), file, "exec"), scope)
    return scope


@pytest.fixture
def webui(request: pytest.FixtureRequest) -> Path:
    folder = request.config.getoption("--webui")
    if not folder:
        pytest.skip("no webui: neither --webui DIR nor SD_WEBUI_DIR names one")
    return Path(folder)


@pytest.mark.webui
@pytest.mark.parametrize("steps", [5, 19, 20, 27, 36, 50])
@pytest.mark.parametrize("part", [1.0, 0.5, 0.2])
def test_restart_of_the_webui(webui: Path, steps: int, part: float) -> None:
    k = SimpleNamespace(sampling=sampling)
    with mock.patch.dict("sys.modules", {"k_diffusion": k, "k_diffusion.sampling": sampling}):
        restart = host_functions(webui, "sd_samplers_extra.py", k_diffusion=k)["restart_sampler"]
        sigmas = sampling.get_sigmas_karras(steps, 0.0292, 14.6146)[-max(1, round(part * steps)) - 1 :]
        seen = []

        def model(x: Tensor, sigma: Tensor) -> Tensor:
            seen.append(float(sigma[0]))
            return denoise(x, sigma[0])

        restart(model, torch.ones(1, 1, 2, 2), sigmas, disable=True)
    assert [float(level) for level in call_levels("restart_sampler", {"sigmas": sigmas})] == pytest.approx(seen)


def timestep_samplers(webui: Path, skip_type: str) -> dict[str, Callable[..., Any]]:
    """DDIM, PLMS and UniPC of the webui."""
    path = webui / "modules" / "models" / "diffusion" / "uni_pc" / "uni_pc.py"
    spec = importlib.util.spec_from_file_location("uni_pc", path)
    uni_pc = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        # a docstring of the host's has escapes that Python does not know
        warnings.simplefilter("ignore")
        spec.loader.exec_module(uni_pc)
    opts = SimpleNamespace(
        uni_pc_variant="bh1", uni_pc_skip_type=skip_type, uni_pc_order=3, uni_pc_lower_order_final=True
    )
    names = {
        "np": importlib.import_module("numpy"),
        "uni_pc": uni_pc,
        "shared": SimpleNamespace(opts=opts),
        "k_diffusion": SimpleNamespace(sampling=sampling),
        "float64": lambda x: torch.float64,
    }
    return host_functions(webui, "sd_samplers_timesteps_impl.py", **names)


# the webui's DDIM mixes numpy's arrays with tensors
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
@pytest.mark.webui
@THRESHOLDS
@pytest.mark.parametrize("part", [1.0, 0.5])
@pytest.mark.parametrize("name", ["ddim", "plms", "unipc time_uniform", "unipc time_quadratic"])
def test_timestep_samplers_of_the_webui(webui: Path, name: str, part: float, thresholds: tuple[float, float]) -> None:
    name, _, skip_type = name.partition(" ")
    settings, space = gated(thresholds), VariancePreserving(ALPHAS)
    every = torch.clip(torch.arange(0, 1000, 50) + 1, 0, 999)
    arguments: dict[str, Any] = {"timesteps": every[: round(part * len(every))]}
    if name == "unipc":
        arguments["is_img2img"] = part < 1
    counter = Counter(settings, space)

    class Denoiser:
        inner_model = SimpleNamespace(inner_model=SimpleNamespace(alphas_cumprod=ALPHAS))

        def __call__(self, x: Tensor, t: Tensor) -> Tensor:
            counter.call(t[0])
            return x / 2

    function = timestep_samplers(webui, skip_type)[name]
    x = torch.ones(1, 4, 2, 2)
    function(Denoiser(), x, extra_args={}, callback=lambda d: None, disable=True, **arguments)
    ahead = timesteps(call_levels(name, {**arguments, "skip_type": skip_type}), space)
    assert counter.views == evaluations(STAGE, ahead, settings)
    assert counter.run.call + 1 == len(ahead)
