"""Compares the estimated number of model calls and the estimated cost with counts from runs of real samplers."""

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
from test_sampler_steps import (
    ALPHAS,
    ANCHOR,
    CASES,
    NOISE,
    STAGE,
    STEPS,
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
from lib_demofusion.method.costs import calls_ahead, calls_of_whole, model_calls, run_costs
from lib_demofusion.method.plan import make_plan
from lib_demofusion.method.residual import NoiseSpace, VarianceExploding, VariancePreserving
from lib_demofusion.method.sampler_steps import TWO_CALLS, TWO_CALLS_ANCESTRAL, StepDetector
from lib_demofusion.method.stage import SamplerTraits, StageRun
from lib_demofusion.method.views import View
from lib_demofusion.settings.fields import Settings

STAGES = make_plan(Settings(scale=3), STAGE.window)


class Counter:
    """Makes the model calls of one stage, and counts the latent cells that the model evaluates."""

    def __init__(self, settings: Settings, space: NoiseSpace, stage: Any = STAGE):
        noise = torch.zeros(1, 4, *stage.size)
        self.run = StageRun(stage, settings, noise, noise, SamplerTraits(space, StepDetector()))
        self.cells = 0
        self.x = torch.zeros(1, 4, *stage.size)

    def call(self, level: Tensor) -> None:
        """Makes one model call of a sampler at a noise level."""
        self.run.before_call(self.x.clone(), level)
        self.run.denoise(self._evaluate, self.x, 1.0, ViewBatches(5))

    def _evaluate(self, crops: Tensor, views: Sequence[View], rows: slice) -> Tensor:
        self.cells += crops[:, 0].numel()
        return crops


def counted(case: Case, settings: Settings, stage: Any, arguments: dict[str, Any]) -> Counter:
    """Runs the sampler function of `case` for a stage, and returns the counter of the model calls."""
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


def with_last_steps(arguments: dict[str, Any], steps: int) -> dict[str, Any]:
    """Returns the arguments of a sampler with only the last `steps` steps of the schedule.

    A denoising strength below 1 shortens the schedule in the same way. Arguments without sigmas are not changed.
    """
    return {**arguments, "sigmas": arguments["sigmas"][-steps - 1 :]} if "sigmas" in arguments else arguments


PREDICTABLE = [
    case
    for case in CASES
    if "h_init" not in case.arguments and case.name != "restart_sampler" and case.inputs.get("eta", 1) <= 1
]
"""The cases with a predictable number of calls. Three kinds of cases are left out.

DPM adaptive chooses its number of steps while it runs. The imitation of Restart in test_sampler_steps.py has a fixed
schedule, so the webui's own Restart is tested below instead. With an eta above 1, some steps of ancestral samplers have
no second call, but the estimate assumes an eta of at most 1.
"""


@pytest.mark.parametrize("steps", [12, 7])
@pytest.mark.parametrize("case", PREDICTABLE, ids=str)
def test_the_predicted_number_of_calls_is_exact_for_k_diffusions_samplers(case: Case, steps: int) -> None:
    arguments = with_last_steps(case.inputs, steps)
    calls = model_calls(case.name, arguments)
    assert calls is not None
    for stage in STAGES.stages:
        counter = counted(case, Settings(), stage, arguments)

        assert calls == counter.run.call + 1


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("case", PREDICTABLE, ids=str)
def test_the_error_of_the_predicted_cost_is_at_most_the_dilated_views_of_one_call(case: Case, strength: float) -> None:
    """The model does not evaluate dilated views in calls at timestep 0, because the weight c2 is 0 there.

    The estimate assumes that exactly one call is at timestep 0. Some samplers differ from this: Heun makes two such
    calls, and Euler with churn and DPM fast make none.
    """
    steps = round(STEPS * strength)
    arguments = {**with_last_steps(case.inputs, steps), **({"n": steps} if "n" in case.inputs else {})}
    settings = Settings(scale=3, denoising_strength=strength)
    costs = run_costs(STAGES, settings, STEPS, case.name in TWO_CALLS | TWO_CALLS_ANCESTRAL)
    for stage, cost in zip(STAGES.stages, costs.stages):
        evaluated = counted(case, settings, stage, arguments).cells
        assert abs(evaluated - cost) <= stage.cells_at(1.0)


def test_higher_values_of_skip_views_reduce_the_predicted_cost() -> None:
    costs = [
        sum(run_costs(STAGES, Settings(skip_views=f"{local},{dilated}"), 20, False).stages)
        for dilated, local in ((0, 0), (0.11, 0), (0, 0.13), (0.3, 0.2))
    ]
    assert costs[0] > costs[1] > costs[3]
    assert costs[0] > costs[2] > costs[3]


def test_the_cost_includes_the_webuis_own_passes() -> None:
    """The default is one pass of all steps, and hires fix adds a second pass.

    If the base image is the unchanged upload of img2img, the pass has no steps.
    """
    small, large = (4, 4), STAGES.base
    assert run_costs(STAGES, Settings(), 10, False).base == 10 * math.prod(large)
    assert run_costs(STAGES, Settings(), 10, True, [(10, small), (4, large)]).base == 19 * 16 + 7 * math.prod(large)
    assert run_costs(STAGES, Settings(), 10, True, [(0, large)]).base == 0


def test_the_calls_of_dpm_adaptive_are_estimated_from_its_calls_in_a_whole_schedule() -> None:
    whole = {"sigma_min": 0.0292, "sigma_max": 14.6146}
    ahead = calls_ahead("sample_dpm_adaptive", whole, False, 84)
    assert 1 + ahead(0, 14.6146) == pytest.approx(84, abs=1)
    assert 1 + ahead(0, 0.1) < 30
    assert ahead(50, 0.0292) == 0
    for level in (14.6146, 1.5):
        assert calls_of_whole(1 + ahead(0, level), {**whole, "sigma_max": level}) == pytest.approx(84)


def test_an_unknown_sampler_is_expected_to_make_two_calls_per_step_if_it_is_of_second_order() -> None:
    sigmas = torch.tensor([3.0, 2.0, 1.0, 0.0])
    assert model_calls("sample_of_tomorrow", {"sigmas": sigmas}) == 3
    assert model_calls("of_tomorrow", {"sigmas": sigmas}, second_order=True) == 5
    # without sigmas or n, the number of calls is unknown and is estimated as for DPM adaptive
    assert calls_ahead("of_tomorrow", {}, False, 20)(0, 14.6) > 10


def host_functions(folder: Path, file: str, **names: Any) -> dict[str, Any]:
    """Returns the functions and classes of a file in `modules` of the webui in `folder`, without running its imports.

    `names` contains the imported objects that the functions use, in addition to torch and tqdm.
    """
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
        pytest.skip("no webui: use --webui DIR or set SD_WEBUI_DIR")
    return Path(folder)


@pytest.mark.webui
@pytest.mark.parametrize("steps", [5, 19, 20, 27, 36, 50])
@pytest.mark.parametrize("part", [1.0, 0.5, 0.2])
def test_the_predicted_number_of_calls_is_exact_for_the_webuis_restart(webui: Path, steps: int, part: float) -> None:
    k = SimpleNamespace(sampling=sampling)
    with mock.patch.dict("sys.modules", {"k_diffusion": k, "k_diffusion.sampling": sampling}):
        restart = host_functions(webui, "sd_samplers_extra.py", k_diffusion=k)["restart_sampler"]
        sigmas = sampling.get_sigmas_karras(steps, 0.0292, 14.6146)[-max(1, round(part * steps)) - 1 :]
        seen = []

        def model(x: Tensor, sigma: Tensor) -> Tensor:
            seen.append(float(sigma[0]))
            return denoise(x, sigma[0])

        restart(model, torch.ones(1, 1, 2, 2), sigmas, disable=True)
    assert model_calls("restart_sampler", {"sigmas": sigmas}, second_order=True) == len(seen)


def timestep_samplers(webui: Path, skip_type: str) -> dict[str, Callable[..., Any]]:
    """Returns the webui's functions for DDIM, PLMS and UniPC by name.

    `skip_type` is the webui's option `uni_pc_skip_type`, which determines the spacing of UniPC's timesteps.
    """
    path = webui / "modules" / "models" / "diffusion" / "uni_pc" / "uni_pc.py"
    spec = importlib.util.spec_from_file_location("uni_pc", path)
    uni_pc = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        # a docstring in uni_pc.py contains invalid escapes
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


# the webui's DDIM mixes numpy arrays with tensors
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
@pytest.mark.webui
@pytest.mark.parametrize("part", [1.0, 0.5])
@pytest.mark.parametrize("name", ["ddim", "plms", "unipc time_uniform", "unipc time_quadratic"])
def test_the_predicted_number_of_calls_is_exact_for_the_webuis_timestep_samplers(
    webui: Path, name: str, part: float
) -> None:
    name, _, skip_type = name.partition(" ")
    space = VariancePreserving(ALPHAS)
    every = torch.clip(torch.arange(0, 1000, 50) + 1, 0, 999)
    arguments: dict[str, Any] = {"timesteps": every[: round(part * len(every))]}
    if name == "unipc":
        arguments["is_img2img"] = part < 1
    counter = Counter(Settings(), space)

    class Denoiser:
        inner_model = SimpleNamespace(inner_model=SimpleNamespace(alphas_cumprod=ALPHAS))

        def __call__(self, x: Tensor, t: Tensor) -> Tensor:
            counter.call(t[0])
            return x / 2

    function = timestep_samplers(webui, skip_type)[name]
    x = torch.ones(1, 4, 2, 2)
    function(Denoiser(), x, extra_args={}, callback=lambda d: None, disable=True, **arguments)
    assert counter.run.call + 1 == model_calls(name, arguments)
