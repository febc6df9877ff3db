"""Tests the sampling functions of an installed Forge or Forge Neo on flow models, without starting the webui.

The test runs the webui's own file with stand-ins for its imports. It compares the extension's facts about each function
with the function itself: whether it is right on a flow model, and which of its model calls begins a step.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from flow_samplers import SAMPLERS
from test_flow_samplers import ANCHOR, NOISE, SETTINGS, SHAPE, STAGE, Driven, drive, levels, randn, relative_error

from lib_demofusion.method.residual import Flow
from lib_demofusion.method.sampler_checks import CallGuard, flow_problem, knows_flow
from lib_demofusion.method.sampler_steps import flow_form, is_stochastic, make_detector
from lib_demofusion.method.stage import SamplerTraits, StageRun

FILES = ("modules_forge/packages/k_diffusion/sampling.py", "k_diffusion/sampling.py")
"""The paths in Forge Neo and in Forge."""
PLAYED = ("k_diffusion", "k_diffusion.deis", "backend", "backend.patcher", "backend.patcher.base", "backend.modules")
NOT_ALONE = frozenset({"sample_deis"})
"""Functions that need another file of the webui."""
LOWEST = 0.3
"""The lowest noise level that the test checks. In the last steps below it, too little noise is left to measure."""


class Prediction:
    """The schedule of a flow model, with the parts that a sampling function uses."""

    prediction_type = "const"

    def noise_scaling(self, sigma: Any, noise: Any, latent: Any, max_denoise: bool = False) -> Any:
        return sigma * noise + (1 - sigma) * latent

    def percent_to_sigma(self, percent: float) -> float:
        return 1 - percent


class PredictionFlux(Prediction):
    """The class of Flux and Chroma, which Forge's functions recognize."""


class PredictionDiscreteFlow(Prediction):
    """The class of Stable Diffusion 3, which Forge's functions do not recognize."""


@pytest.fixture(scope="module")
def functions(request: pytest.FixtureRequest) -> dict[str, Callable[..., Any]]:
    """Returns the sampling functions that take levels, by name."""
    folder = request.config.getoption("--webui")
    found = [path for path in (Path(folder) / name for name in FILES) if path.is_file()] if folder else []
    if not found:
        pytest.skip("no Forge or Forge Neo: name one with --webui DIR or SD_WEBUI_DIR")
    names = (*PLAYED, "backend.modules.k_prediction", "played_sampling", "played_sampling.utils")
    played = {name: ModuleType(name) for name in names}
    played["k_diffusion"].deis = played["k_diffusion.deis"]
    played["backend.patcher.base"].set_model_options_post_cfg_function = None
    played["backend.modules.k_prediction"].PredictionFlux = PredictionFlux
    utils = played["played_sampling.utils"]
    utils.append_dims = lambda x, count: x[(..., *[None] * (count - x.ndim))]
    package = played["played_sampling"]
    package.__path__, package.utils = [], utils
    own: dict[str, Any] = {"__package__": "played_sampling", "__name__": "played_sampling.sampling"}
    with mock.patch.dict(sys.modules, played):
        exec(compile(found[0].read_text(encoding="utf-8"), str(found[0]), "exec"), own)
    samplers = {name: value for name, value in own.items() if name.startswith("sample_") and "cfg_pp" not in name}
    return {
        name: function
        for name, function in samplers.items()
        if "sigmas" in inspect.signature(function).parameters and name not in NOT_ALONE
    }


def judged(function: Callable[..., Any], predictor: Any) -> str | None:
    """Returns the extension's reason to refuse a function that is called as the webuis call it, or None."""
    parameters = inspect.signature(function).parameters
    draws = is_stochastic(function.__name__, 1.0 if "eta" in parameters else None, 0.0, "noise_sampler" in parameters)
    return flow_problem(function.__name__, function.__name__, draws, knows_flow(function, predictor))


def called(function: Callable[..., Any], model: Any, x: torch.Tensor, draw: Callable[[], Any], callback: Any) -> Any:
    arguments = {"callback": callback, "disable": True}
    parameters = inspect.signature(function).parameters
    if "noise_sampler" in parameters:
        arguments["noise_sampler"] = lambda *levels: draw()
    if "eta" in parameters:
        arguments["eta"] = 1.0
    return function(model, x, levels(9), **arguments)


class Model:
    """Passes a sampling function's calls to `denoise`, with the attributes of a webui's model."""

    def __init__(self, predictor: Any, denoise: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]):
        self.inner_model = SimpleNamespace(predictor=predictor)
        self._denoise = denoise

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **more: Any) -> torch.Tensor:
        return self._denoise(x, sigma[0])


@pytest.mark.parametrize("predictor", [PredictionFlux(), PredictionDiscreteFlow()], ids=["Flux", "other"])
def test_a_function_is_refused_if_it_leaves_the_signal_or_the_noise_at_a_wrong_level(functions, predictor) -> None:
    """The model returns the true signal. A right function has an error of about 0.01, a wrong one of at least 0.2."""
    shape = (1, 4, 96, 96)
    clean = randn(3, shape)
    said: dict[str, tuple[bool, float]] = {}
    for name, function in functions.items():
        drawn, worst = [0], [0.0]

        def draw(drawn=drawn) -> torch.Tensor:
            drawn[0] += 1
            return randn(700 + drawn[0], shape)

        def denoise(x, sigma, worst=worst) -> torch.Tensor:
            if sigma > LOWEST:
                signal = (x * clean).mean() / (clean * clean).mean()
                noise = (x - signal * clean).std() / sigma
                worst[0] = max(worst[0], float((signal - (1 - sigma)).abs()), float((noise - 1).abs()))
            return clean

        first = levels(9)[0]
        called(function, Model(predictor, denoise), (1 - first) * clean + first * randn(9, shape), draw, None)
        said[name] = judged(function, predictor) is not None, worst[0]
    assert {name: refused for name, (refused, _) in said.items()} == {n: off > 0.1 for n, (_, off) in said.items()}
    assert all(off < 0.03 or off > 0.2 for _, off in said.values()), said


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_function_makes_its_calls_as_the_reference_does(functions, name: str) -> None:
    """The stage uses the step detector for the function's name. Every x that the model gets equals the reference's."""
    predictor = PredictionFlux()
    function = functions.get(name)
    if function is None or judged(function, predictor) is not None:
        pytest.skip("this webui has no such function for flow models")
    detector = make_detector(flow_form(name), levels(9), None, 1.0)
    x = torch.full(SHAPE, torch.nan, dtype=torch.float64)
    run = StageRun(
        STAGE, SETTINGS, ANCHOR, NOISE, SamplerTraits(Flow(), detector, is_stochastic(name, 1.0), CallGuard(x))
    )
    steps = Driven(run)

    def after_step(d: dict[str, Any]) -> None:
        run.after_step(d["i"], d["x"], d["denoised"])

    made = called(function, Model(predictor, steps.again), x, steps.draw, after_step)
    run.end()
    expected = drive(name, levels(9), 1.0, make_detector(flow_form(name), levels(9), None, 1.0))
    assert relative_error([*steps.seen, made], expected) < 1e-9
