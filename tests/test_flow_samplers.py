"""Tests the skip residual with samplers for flow models, and the checks that refuse other samplers for flow models."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flow_samplers import SAMPLERS
from torch import Tensor

from lib_demofusion.method.plan import StagePlan
from lib_demofusion.method.residual import Flow
from lib_demofusion.method.sampler_checks import ADVICE, WRONG_ON_FLOW, CallGuard, flow_problem, knows_flow
from lib_demofusion.method.sampler_steps import StepDetector, flow_form, is_stochastic, make_detector
from lib_demofusion.method.schedule import snr_timestep
from lib_demofusion.method.stage import SamplerTraits, StageRun
from lib_demofusion.settings.fields import Settings

TOLERANCE = 1e-9
SHAPE = (2, 4, 24, 32)
STAGE = StagePlan(1, 2.0, (24, 32), 2, (12, 16), (6, 8))
SETTINGS = Settings(cosine_scale_1=1.0)
"""With an exponent of 1, the blend is stronger than with the default of 3. A step without a blend then fails a test."""


def levels(steps: int, first: float = 0.96, shift: float = 3.0) -> Tensor:
    """Returns the levels of a schedule with this shift, from `first` down to 0."""
    u = torch.linspace(first / (shift - (shift - 1) * first), 0, steps + 1, dtype=torch.float64)
    return shift * u / (1 + (shift - 1) * u)


def randn(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ANCHOR, NOISE = randn(1), randn(2)


def denoise(x: Tensor, sigma: Tensor) -> Tensor:
    """Returns the posterior mean of each cell of x for a Gaussian signal with mean 0.4 and standard deviation 0.6."""
    signal, gain = 1 - sigma, 0.36 * (1 - sigma) / (0.36 * (1 - sigma) ** 2 + sigma**2)
    return 0.4 + gain * (x - signal * 0.4)


class Driven:
    """Calls the model for a sampler of flow_samplers.py, and passes every call to a StageRun, which blends x.

    The detector of the StageRun must find the calls that begin a step.
    """

    def __init__(self, run: StageRun, shape: tuple[int, ...] = SHAPE):
        self._run, self._shape = run, shape
        self.seen: list[Tensor] = []
        self._drawn = self._step = 0

    def first(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        denoised = self.again(x, sigma)
        self._run.after_step(self._step, x, denoised)
        self._step += 1
        return x, denoised

    def again(self, x: Tensor, sigma: Tensor) -> Tensor:
        self._run.before_call(x, sigma)
        self.seen.append(x.clone())
        return denoise(x, sigma)

    def draw(self) -> Tensor:
        self._drawn += 1
        return randn(100 + self._drawn, self._shape)


class Explicit:
    """Calls the model for a sampler of flow_samplers.py without a StageRun.

    `first` blends x with the formulas of the skip residual.
    """

    def __init__(self, stochastic: bool):
        self._stochastic = stochastic
        self._denoised: Tensor | None = None
        self.seen: list[Tensor] = []
        self._drawn = 0

    def first(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        c1 = (1 + math.cos(math.pi * (1000 - snr_timestep(float(sigma))) / 1000)) / 2
        if self._denoised is None:
            x = (1 - sigma) * ANCHOR + sigma * NOISE
        elif self._stochastic:
            x = x + c1 * (1 - sigma) * (ANCHOR - self._denoised)
        else:
            x = (1 - c1) * x + c1 * ((1 - sigma) * ANCHOR + sigma * NOISE)
        self._denoised = self.again(x, sigma)
        return x, self._denoised

    def again(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.seen.append(x)
        return denoise(x, sigma)

    def draw(self) -> Tensor:
        self._drawn += 1
        return randn(100 + self._drawn)


def relative_error(actual: list[Tensor], expected: list[Tensor]) -> float:
    assert len(actual) == len(expected)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(actual, expected))


def drive(name: str, sigmas: Tensor, eta: float, detector: StepDetector) -> list[Tensor]:
    """Runs a sampler with a StageRun. Returns every x that the model receives, then the result."""
    stochastic = is_stochastic(name, eta)
    x = torch.full(SHAPE, torch.nan, dtype=torch.float64)
    run = StageRun(STAGE, SETTINGS, ANCHOR, NOISE, SamplerTraits(Flow(), detector, stochastic, CallGuard(x)))
    steps = Driven(run)
    made = SAMPLERS[name](steps, x, sigmas, eta)
    run.end()
    return [*steps.seen, made]


@pytest.mark.parametrize("first", [1.0, 0.96, 0.6])
@pytest.mark.parametrize("eta", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_of_flow_models_blend_at_the_start_of_each_step(name: str, eta: float, first: float) -> None:
    if first == 1 and "sde" in name:
        pytest.skip("SDE samplers compute log((1 - sigma) / sigma), so Forge Neo starts them slightly below sigma = 1")
    sigmas = levels(9, first)
    actual = drive(name, sigmas, eta, make_detector(flow_form(name), sigmas, None, eta))
    explicit = Explicit(is_stochastic(name, eta))
    made = SAMPLERS[name](explicit, ANCHOR, sigmas, eta)
    assert relative_error(actual, [*explicit.seen, made]) < TOLERANCE


def test_dpm2_a_omits_its_second_call_if_a_large_eta_removes_all_noise() -> None:
    """On a flow model, a step from `sigma` to `target` removes all noise at eta = 1 / (1 - target / sigma).

    DPM++ 2S a omits its second call at a large eta too, but only in k-diffusion's space and not on flow models.
    """
    sigmas = torch.tensor([0.8, 0.4, 0.2, 0.0], dtype=torch.float64)
    assert make_detector(flow_form("sample_dpm_2_ancestral"), sigmas, None, 2.0)._more_calls(0) == 0
    assert make_detector(flow_form("sample_dpm_2_ancestral"), sigmas, None, 1.9)._more_calls(0) == 1
    name = "sample_dpmpp_2s_ancestral"
    assert make_detector(name, sigmas, None, 1.2)._more_calls(1) == 0
    assert make_detector(flow_form(name), sigmas, None, 1.2)._more_calls(1) == 1


def noise_levels(name: str, stochastic: bool) -> list[tuple[float, float]]:
    """Returns sigma and the share of noise for each step.

    The share is the standard deviation of the noise in the blended x, divided by sigma. To measure the noise, the
    function subtracts the known signal from x, and also the shift of x towards the anchor, which differs from the
    signal.
    """
    shape = (2, 4, 96, 96)
    clean = randn(3, shape)
    anchor, noise = clean + 0.3 * randn(4, shape), randn(5, shape)
    sigmas = levels(20, 0.97)
    run = StageRun(
        STAGE, Settings(), anchor, noise, SamplerTraits(Flow(), make_detector(flow_form(name), sigmas), stochastic)
    )
    found: list[tuple[float, float]] = []

    class Measured(Driven):
        def first(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            x, denoised = super().first(x, sigma)
            # the blend shifts x in the direction from the signal to the anchor, so this component of x is not noise
            moved = torch.stack([(x - (1 - sigma) * clean).flatten(), (anchor - clean).flatten()])
            own = moved[0] - (moved[0] @ moved[1]) / (moved[1] @ moved[1]) * moved[1]
            found.append((float(sigma), float(own.std() / sigma)))
            return x, denoised

        def again(self, x: Tensor, sigma: Tensor) -> Tensor:
            self._run.before_call(x, sigma)
            # the posterior mean for a Gaussian signal with the mean `clean` and a variance of 1e-6
            gain = 1e-6 * (1 - sigma) / (1e-6 * (1 - sigma) ** 2 + sigma**2)
            return clean + gain * (x - (1 - sigma) * clean)

    SAMPLERS[name](Measured(run, shape), torch.zeros(shape, dtype=torch.float64), sigmas, 1.0)
    return found


ANCESTRAL = ["sample_euler_ancestral", "sample_dpmpp_2s_ancestral", "sample_dpm_2_ancestral", "sample_lcm"]


@pytest.mark.parametrize("name", [*ANCESTRAL, "sample_dpmpp_2m_sde", "sample_dpmpp_sde"])
def test_the_noise_in_x_is_within_one_percent_of_sigma(name: str) -> None:
    found = [(sigma, share) for sigma, share in noise_levels(name, stochastic=True) if sigma > 0.3]
    assert len(found) > 10
    assert all(abs(share - 1) < 0.01 for sigma, share in found), found


def test_the_blend_for_samplers_that_add_no_noise_would_lower_the_noise_level_of_euler_a() -> None:
    found = [share for sigma, share in noise_levels("sample_euler_ancestral", stochastic=False) if sigma > 0.3]
    assert min(found) < 0.95


def problem(name: str, draws: bool = False, knows: bool = True, churn: float = 0.0) -> str:
    return flow_problem("Label", name, draws, knows, churn) or ""


@pytest.mark.parametrize("name", sorted(WRONG_ON_FLOW))
def test_samplers_that_are_wrong_on_flow_models_are_refused_by_name(name: str) -> None:
    assert problem(name) == f"the sampler Label on flow models: {WRONG_ON_FLOW[name]}; {ADVICE}"


@pytest.mark.parametrize("name", ["sample_euler", "sample_heun", "sample_dpm_2", "sample_dpmpp_2m", "sample_lms"])
def test_samplers_that_add_no_noise_are_accepted_unless_sigma_churn_is_set(name: str) -> None:
    assert problem(name, knows=False) == ""
    assert "Sigma churn on flow models" in problem(name, draws=True, knows=False, churn=0.1)


def test_a_sampler_that_adds_noise_must_support_flow_models() -> None:
    """Forge Neo's SDE samplers support flow models, and Forge's SDE samplers do not.

    DPM adaptive does not support flow models either, but is accepted at eta 0, because it then adds no noise.
    """
    assert "without scaling the image down" in problem("sample_dpmpp_2m_sde", draws=True, knows=False)
    assert problem("sample_dpmpp_2m_sde", draws=True, knows=True) == ""
    assert problem("sample_dpm_adaptive", draws=False, knows=False) == ""


class PredictionFlux:
    """Imitates Forge's schedule of Flux. Forge's sampling functions contain checks for this class.

    DemoFusion searches the code of a sampling function for the name of this class.
    """


def functions() -> dict[str, Any]:
    """Returns imitations of sampling functions of Forge and Forge Neo. `knows_flow` searches their code for names."""
    code = """
def sample_euler_ancestral(model, x):
    return sample_euler_ancestral_RF(model, x) if isinstance(model.predictor, PredictionFlux) else x

def sample_euler_ancestral_RF(model, x):
    return x

def sample_dpmpp_2m_sde(model, x, sigmas):
    return offset_first_sigma_for_snr(sigmas, model.predictor)

def sample_lcm(model, x):
    return model.predictor.noise_scaling(x)

def sample_dpmpp_sde(model, x):
    return x
"""
    made: dict[str, Any] = {}
    exec(code, made)
    return made


def test_support_for_flow_models_is_recognized_by_the_code_of_a_function() -> None:
    made, other = functions(), SimpleNamespace()
    assert knows_flow(made["sample_euler_ancestral"], PredictionFlux())
    assert not knows_flow(made["sample_euler_ancestral"], other)
    for name, knows in [
        ("sample_euler_ancestral_RF", True),
        ("sample_dpmpp_2m_sde", True),
        ("sample_lcm", True),
        ("sample_dpmpp_sde", False),
    ]:
        assert knows_flow(made[name], other) == knows
        assert knows_flow(torch.no_grad()(made[name]), other) == knows
    assert not knows_flow(len, other)
