"""Tests the sampling functions of an installed Forge or Forge Neo on flow models, without starting the webui.

The tests execute the webui's own file of sampling functions, with stand-ins for the modules that the file imports. They
test two properties that the extension assumes for each function: whether the function works with flow models, and which
of its model calls begin a step.
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
"""Paths of the file with the sampling functions: the first path is that of Forge Neo, the second that of Forge."""
STAND_INS = ("k_diffusion", "k_diffusion.deis", "backend", "backend.patcher", "backend.patcher.base", "backend.modules")
"""The modules that the file with the sampling functions imports. In the tests, stand-ins replace them."""
NEEDS_ANOTHER_FILE = frozenset({"sample_deis"})
"""Sampling functions that are not tested, because they use code in another file of the webui."""
LOWEST = 0.3
"""The lowest noise level at which the test measures x. Below this level, x contains too little noise to measure."""


class Prediction:
    """A stand-in for the predictor of a flow model, with the attributes that a sampling function uses."""

    prediction_type = "const"

    def noise_scaling(self, sigma: Any, noise: Any, latent: Any, max_denoise: bool = False) -> Any:
        return sigma * noise + (1 - sigma) * latent

    def percent_to_sigma(self, percent: float) -> float:
        return 1 - percent


class PredictionFlux(Prediction):
    """The predictor class of Flux and Chroma. Forge's functions recognize flow models by this class."""


class PredictionDiscreteFlow(Prediction):
    """The predictor class of Stable Diffusion 3. Forge's functions do not recognize this class."""


@pytest.fixture(scope="module")
def functions(request: pytest.FixtureRequest) -> dict[str, Callable[..., Any]]:
    """Maps the names of the webui's sampling functions to the functions.

    Leaves out functions without a parameter `sigmas` (the noise levels), CFG++ functions, and NEEDS_ANOTHER_FILE.
    """
    folder = request.config.getoption("--webui")
    found = [path for path in (Path(folder) / name for name in FILES) if path.is_file()] if folder else []
    if not found:
        pytest.skip("no Forge or Forge Neo: name one with --webui DIR or SD_WEBUI_DIR")
    names = (*STAND_INS, "backend.modules.k_prediction", "stand_in_sampling", "stand_in_sampling.utils")
    stand_ins = {name: ModuleType(name) for name in names}
    stand_ins["k_diffusion"].deis = stand_ins["k_diffusion.deis"]
    stand_ins["backend.patcher.base"].set_model_options_post_cfg_function = None
    stand_ins["backend.modules.k_prediction"].PredictionFlux = PredictionFlux
    utils = stand_ins["stand_in_sampling.utils"]
    utils.append_dims = lambda x, count: x[(..., *[None] * (count - x.ndim))]
    package = stand_ins["stand_in_sampling"]
    package.__path__, package.utils = [], utils
    own: dict[str, Any] = {"__package__": "stand_in_sampling", "__name__": "stand_in_sampling.sampling"}
    with mock.patch.dict(sys.modules, stand_ins):
        exec(compile(found[0].read_text(encoding="utf-8"), str(found[0]), "exec"), own)
    samplers = {name: value for name, value in own.items() if name.startswith("sample_") and "cfg_pp" not in name}
    return {
        name: function
        for name, function in samplers.items()
        if "sigmas" in inspect.signature(function).parameters and name not in NEEDS_ANOTHER_FILE
    }


def refusal_of(function: Callable[..., Any], predictor: Any) -> str | None:
    """Returns the extension's message that refuses a function, or None if the extension accepts the function.

    The function is assumed to be called as in the webuis: with eta = 1 and a noise sampler, if it has these parameters.
    """
    parameters = inspect.signature(function).parameters
    draws = is_stochastic(function.__name__, 1.0 if "eta" in parameters else None, 0.0, "noise_sampler" in parameters)
    return flow_problem(function.__name__, function.__name__, draws, knows_flow(function, predictor))


def called(function: Callable[..., Any], model: Any, x: torch.Tensor, draw: Callable[[], Any], callback: Any) -> Any:
    """Calls a sampling function with ten noise levels. Returns the function's result. `draw` returns new noise."""
    arguments = {"callback": callback, "disable": True}
    parameters = inspect.signature(function).parameters
    if "noise_sampler" in parameters:
        arguments["noise_sampler"] = lambda *levels: draw()
    if "eta" in parameters:
        arguments["eta"] = 1.0
    return function(model, x, levels(9), **arguments)


class Model:
    """A stand-in for a webui's model. Passes each call by a sampling function to `denoise`."""

    def __init__(self, predictor: Any, denoise: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]):
        self.inner_model = SimpleNamespace(predictor=predictor)
        self._denoise = denoise

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **more: Any) -> torch.Tensor:
        return self._denoise(x, sigma[0])


@pytest.mark.parametrize("predictor", [PredictionFlux(), PredictionDiscreteFlow()], ids=["Flux", "other"])
def test_a_function_is_refused_if_it_leaves_the_signal_or_the_noise_at_a_wrong_level(functions, predictor) -> None:
    """The model returns the true signal, and measures the levels of signal and noise in every x that the model gets.

    The largest error of these levels is below 0.03 for a correct function, and above 0.2 for a wrong function.
    """
    shape = (1, 4, 96, 96)
    clean = randn(3, shape)
    found: dict[str, tuple[bool, float]] = {}
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
        found[name] = refusal_of(function, predictor) is not None, worst[0]
    assert {name: refused for name, (refused, _) in found.items()} == {n: off > 0.1 for n, (_, off) in found.items()}
    assert all(off < 0.03 or off > 0.2 for _, off in found.values()), found


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_model_gets_the_same_x_as_from_the_reference_sampler(functions, name: str) -> None:
    """The webui's function and the reference sampler run the same stage with equal step detectors.

    The reference sampler is the sampler of the same name in flow_samplers.py. The stage blends the skip residual into x
    at the calls that the detector takes for the first call of a step. If the detector were wrong for the webui's
    function, x would differ from the x of the reference sampler.
    """
    predictor = PredictionFlux()
    function = functions.get(name)
    if function is None or refusal_of(function, predictor) is not None:
        pytest.skip("this webui has no such function for flow models")
    detector = make_detector(flow_form(name), levels(9), None, 1.0)
    x = torch.full(SHAPE, torch.nan, dtype=torch.float64)
    run = StageRun(
        STAGE, SETTINGS, ANCHOR, NOISE, SamplerTraits(Flow(), detector, is_stochastic(name, 1.0), CallGuard(x))
    )
    steps = Driven(run)

    def after_step(d: dict[str, Any]) -> None:
        run.after_step(d["i"], d["x"], d["denoised"])

    result = called(function, Model(predictor, steps.again), x, steps.draw, after_step)
    run.end()
    expected = drive(name, levels(9), 1.0, make_detector(flow_form(name), levels(9), None, 1.0))
    assert relative_error([*steps.seen, result], expected) < 1e-9
