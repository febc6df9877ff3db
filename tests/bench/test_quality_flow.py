"""Tests bench.quality.flow, which runs the small model as a flow model.

The flow model is the same network with another scale and other noise levels of x, and with samplers for flow models.
"""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import k_diffusion_sampling
import numpy as np
import pytest
import torch

from bench.quality.__main__ import jobs_for
from bench.quality.configurations import CONFIGURATIONS, FLOW_CONFIGURATIONS, PAPER
from bench.quality.denoiser import NATIVE
from bench.quality.flow import FlowRow, Sampler, clean_latent, sample_flow
from bench.quality.runs import Bases, Store
from bench.quality.sampler import Steps, initial_noise, sample, timesteps
from bench.quality.ways import Sampling, Studio, few_steps
from bench.quality.worlds import COLLAGES
from lib_demofusion.method.plan import make_plan
from lib_demofusion.method.residual import Flow, VariancePreserving
from lib_demofusion.method.sampler_steps import StepDetector
from lib_demofusion.method.schedule import flow_level, snr_timestep
from lib_demofusion.method.stage import SamplerTraits, StageRun
from lib_demofusion.settings.fields import Settings
from tests.bench.test_quality_runs import TinyModel

NUMBERS = [0, 3]
"""The numbers of the prompts, which are also their seeds."""
TIMES = timesteps(6, 0.7)
"""The timesteps of a stage with the denoising strength 0.7. The base pass would have 6 timesteps."""
SIGMAS = torch.tensor([*map(flow_level, TIMES), 0.0], dtype=torch.float64)
"""The flow model's noise levels at TIMES, and then 0."""
BY_NAME = {configuration.name: configuration for configuration in FLOW_CONFIGURATIONS}


@pytest.fixture
def studio() -> Studio:
    """Returns an object that samples images with a tiny model. A call of the model has at most eight rows."""
    return Studio(TinyModel(), Sampling(steps=4, rows=8, bfloat16=False), COLLAGES)


def in_flow_space(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Converts the x of DDIM to the x of a flow model.

    `sigma` is the flow model's noise level with the same signal-to-noise ratio as the x of DDIM.
    """
    return x * ((1 - sigma) ** 2 + sigma**2) ** 0.5


def test_euler_with_the_flow_model_equals_ddim_with_the_small_model(studio) -> None:
    """Both samplers make the same steps from the same noise. Only the scale of x differs."""
    guided, noise = studio.guided(NUMBERS), initial_noise(NUMBERS, NATIVE, NATIVE)
    expected = sample(noise, Steps(TIMES, studio.alphas), guided.whole)

    def predict(x, sigma):
        return clean_latent(lambda scaled, t: guided.whole(scaled, t), x, sigma)

    made = sample_flow(in_flow_space(noise, float(SIGMAS[0])), SIGMAS, predict)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)


def test_a_stage_of_tiles_gives_the_same_result_with_ddim_and_with_the_flow_model(studio) -> None:
    """The stage has a skip residual, cosine weights, tiles and guidance.

    The large `cosine_scale_2` makes the weight of the dilated views zero, because their results differ between the
    two kinds of models.
    """
    settings = Settings(enabled=True, scale=2, cosine_scale_2=1e9, feather=0.25)
    stage = make_plan(settings, (NATIVE, NATIVE)).stages[-1]
    anchor, noise = initial_noise([7, 8], *stage.size), initial_noise([9, 10], *stage.size)

    def run(space) -> StageRun:
        return StageRun(stage, settings, anchor, noise, SamplerTraits(space, StepDetector()))

    ddim = run(VariancePreserving(studio.alphas))
    expected = sample(torch.zeros_like(anchor), Steps(TIMES, studio.alphas), studio.guided(NUMBERS).fused(ddim), ddim)
    flow = run(Flow(snr_timestep))
    made = sample_flow(torch.zeros_like(anchor), SIGMAS, studio.guided(NUMBERS).fused_flow(flow), flow)
    torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("sampler", "function"), [("Euler", "sample_euler"), ("DPM++ 2M", "sample_dpmpp_2m")])
def test_the_samplers_give_the_same_result_as_k_diffusion(sampler, function: str) -> None:
    """k-diffusion's samplers solve dx / dsigma = (x - denoised) / sigma. This equation also holds for flow models."""
    sigmas, x = FlowRow(shift=3.0).levels(7), initial_noise([1], 8, 8).double()
    model = lambda x, sigma: torch.tanh(x) * (1 - sigma)  # noqa: E731
    reference = getattr(k_diffusion_sampling.load(), function)
    expected = reference(lambda x, sigma: model(x, float(sigma[0])), x.clone(), sigmas, disable=True)
    torch.testing.assert_close(sample_flow(x, sigmas, model, sampler=sampler), expected)


def test_euler_a_keeps_the_noise_at_its_level() -> None:
    """The model always predicts `clean`. The rest of x is noise, and its standard deviation must be sigma."""
    clean = initial_noise([1], 64, 64).double()
    levels, generator = FlowRow(shift=3.0).levels(8)[2:], torch.Generator().manual_seed(5)
    draw = lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)  # noqa: E731

    def predict(x, sigma):
        assert float((x - (1 - sigma) * clean).std()) == pytest.approx(sigma, rel=0.02)
        return clean

    start = (1 - levels[0]) * clean + levels[0] * draw(clean)
    assert torch.equal(sample_flow(start, levels, predict, sampler="Euler a", fresh=draw), clean)


def test_at_sigma_1_the_model_is_called_at_timestep_999_and_the_latent_is_finite() -> None:
    asked = []
    x = initial_noise([1], 8, 8)
    for consistency in (False, True):
        found = clean_latent(lambda scaled, t: asked.append(t) or 0.9 * scaled, x, 1.0, consistency)
        assert torch.isfinite(found).all()
    assert asked == [999.0, 999.0]


@pytest.mark.parametrize("shift", [1.0, 3.0, 9.0])
def test_a_stage_begins_at_the_level_of_its_strength(shift: float) -> None:
    """With any shift, a stage at strength 0.5 begins near the noise level of timestep 500 of 1000, and runs 10 steps.

    At strength 1, it runs 20 steps. The noise levels include the final 0, so there is one more than there are steps.
    """
    sigmas = FlowRow(shift=shift).steps(20, 0.5)
    assert len(sigmas) == 11
    assert float(sigmas[0]) == pytest.approx(flow_level(500), abs=0.02)
    assert len(FlowRow(shift=shift).steps(20, 1.0)) == 21


def bases(studio: Studio, folder) -> Bases:
    """Makes the first two base images, and stores them in `folder`."""
    made = Bases(studio, Store(folder, "origin"))
    made.prepare(range(2))
    return made


@pytest.mark.parametrize("preset", ["Paper", "Fast"])
@pytest.mark.parametrize("sampler", get_args(Sampler))
def test_images_of_a_batch_equal_single_images(studio, tmp_path, preset: str, sampler: str) -> None:
    name = f"Flow {preset}, {sampler}, shift 9, unshifted"
    made = bases(studio, tmp_path)
    together, units = studio.make(BY_NAME[name], made.batch([0, 1]), 2)
    assert together.shape == (2, 256, 256, 3)
    assert units > 0
    assert np.abs(together - together.mean()).max() > 0
    alone = studio.make(BY_NAME[name], made.batch([1]), 2)[0]
    # the images have 8 bits per channel, and may differ by one level
    np.testing.assert_allclose(together[1:], alone, atol=1.01 / 255)


def test_a_consistency_model_runs_as_a_flow_model(tmp_path) -> None:
    studio = Studio(TinyModel(), few_steps(4, bfloat16=False), COLLAGES)
    name = "Flow Turbo, Euler, shift 3, equal SNR"
    pictures, _ = studio.make(BY_NAME[name], bases(studio, tmp_path).batch([0]), 2)
    assert np.isfinite(pictures).all()


def test_flow_configurations_run_only_if_they_are_named() -> None:
    """There are 108 of them: 4 presets, 3 samplers, 3 shifts, and 3 ways to compute the cosine weights."""
    assert [job.configuration for job in jobs_for(None, PAPER, [2])] == list(CONFIGURATIONS)
    named = jobs_for(["Flow Fast, *, shift 3, equal SNR", "Balanced"], PAPER, [2])
    assert [job.configuration.name for job in named] == [
        PAPER,
        "Balanced",
        "Flow Fast, Euler, shift 3, equal SNR",
        "Flow Fast, DPM++ 2M, shift 3, equal SNR",
        "Flow Fast, Euler a, shift 3, equal SNR",
    ]
    with pytest.raises(SystemExit, match="No configuration is named Flow Quick"):
        jobs_for(["Flow Quick"], PAPER, [2])
    assert len({row.name for row in FLOW_CONFIGURATIONS}) == len(FLOW_CONFIGURATIONS) == 108


def test_the_fingerprint_of_a_configuration_contains_the_field_flow_only_if_it_is_set() -> None:
    """The fingerprint identifies stored results. Results from before the field `flow` existed must stay valid."""
    assert "flow" not in CONFIGURATIONS[0].fingerprint()
    row = FLOW_CONFIGURATIONS[0]
    assert (
        replace(row, flow=FlowRow(shift=5.0)).fingerprint()
        != row.fingerprint()
        != replace(row, flow=None).fingerprint()
    )
