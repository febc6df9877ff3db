"""Reproduces the recorded runs of the paper's pipeline (tests/data) with the library.

In the published pipeline, jitter can shift views at the borders into zero padding. The recordings contain the positions
of all local views. The tests pass these views to the library, together with the padded latent, and fuse local and
dilated views separately. The skip residual, the blur, the weights and the end of a stage are computed by the same
functions as in the webui. The sampler is k-diffusion's Euler or, in one case, a DDIM loop in this file.
"""

from __future__ import annotations

import json
from pathlib import Path

import k_diffusion_sampling
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fusing import fuse
from torch import Tensor

from lib_demofusion.method.filters import blur_for_dilation
from lib_demofusion.method.plan import StagePlan
from lib_demofusion.method.residual import VarianceExploding, VariancePreserving
from lib_demofusion.method.sampler_steps import StepDetector
from lib_demofusion.method.stage import SamplerTraits, StageRun, finish_stage
from lib_demofusion.method.views import LocalView
from lib_demofusion.settings.fields import Settings

DATA = Path(__file__).parent / "data"
CASES = ["euler_square_x3", "euler_landscape_x2", "euler_img2img_x2", "ddim_square_x2"]
TOLERANCE = 1e-5
"""The largest allowed difference from a recorded latent, relative to the largest value of that latent."""


class Case:
    """One recorded run, and the small UNet that was used for it."""

    def __init__(self, name: str):
        with np.load(DATA / f"{name}.npz") as arrays:
            self.data = {key: torch.from_numpy(arrays[key]) for key in arrays}
        meta = json.loads(bytes(self.data.pop("meta").tolist()).decode())
        self.meta = meta
        self.window, self.jitter = meta["window"], meta["jitter_range"]
        self.settings = Settings(
            cosine_scale_1=meta["cosine_scale_1"],
            cosine_scale_2=meta["cosine_scale_2"],
            cosine_scale_3=meta["cosine_scale_3"],
            sigma=meta["sigma"],
        )
        self.sigmas = self.data.get("sigmas")
        self.alphas = self.data["alphas_cumprod"]

    def eps(self, x: Tensor, t: float, prompt: str, crop: tuple[int, int]) -> Tensor:
        """Returns the noise that the recorded UNet predicts in x.

        `prompt` is "cond" or "uncond". `crop` is the top and left of SDXL's crop in pixels.
        """
        d = self.data
        ids = torch.tensor([self.meta["height"], self.meta["width"], *crop, self.meta["height"], self.meta["width"]])
        bias = d["unet_a"] * np.sin(t / 160) + d["unet_b"] * np.cos(t / 40)
        bias = bias + d["unet_text"] @ d[f"{prompt}_context"][0].mean(0)
        bias = bias + d["unet_pool"] @ d[f"{prompt}_pooled"][0] + d["unet_ids"] @ (ids.float() / 1024)
        hidden = torch.tanh(F.conv2d(x, d["unet_c1"], padding=1) + bias.view(1, -1, 1, 1))
        return F.conv2d(hidden, d["unet_c2"], padding=1)

    def guided_eps(self, x: Tensor, t: float, crop: tuple[int, int]) -> Tensor:
        """Returns the noise in x that the recorded UNet predicts with classifier-free guidance."""
        cond, uncond = (self.eps(x, t, prompt, crop) for prompt in ("cond", "uncond"))
        return uncond + self.meta["guidance_scale"] * (cond - uncond)

    def views(self, stage: int, step: int) -> list[LocalView]:
        """Returns the recorded local views of a step. Their positions are in the latent padded by the jitter range."""
        rows = self.data[f"stage{stage}_views_{step}"].tolist()
        return [LocalView(h0, w0, h1 - h0, w1 - w0) for h0, h1, w0, w1 in rows]

    def timestep(self, sigma: float) -> float:
        """Returns the recorded timestep of the recorded noise level that is closest to `sigma`."""
        index = int((self.sigmas - sigma).abs().argmin())
        return float(self.data["timesteps"][index])


class RecordedStage:
    """One stage of a recorded run: a StageRun with the recorded noise. `fused` uses the recorded local views."""

    def __init__(self, case: Case, index: int, anchor: Tensor, scale: int):
        self.case, self.index = case, index
        noise = case.data[f"stage{index}_noise"]
        size = (noise.shape[2], noise.shape[3])
        window = (min(case.window, size[0]), min(case.window, size[1]))
        plan = StagePlan(index + 1, scale, size, scale, window, (case.meta["stride"],) * 2)
        if case.meta["scheduler"] == "euler":
            space = VarianceExploding(lambda sigma: torch.tensor(case.timestep(float(sigma))))
        else:
            space = VariancePreserving(case.alphas)
        self.run = StageRun(plan, case.settings, anchor, noise, SamplerTraits(space, StepDetector()))

    def fused(self, x: Tensor, predict, correction: float) -> Tensor:
        """Returns the prediction for x, fused from the predictions for all views.

        As in the published code, local views are crops of the zero-padded latent. `predict` evaluates the model on one
        crop. It receives the crop, and a top and left in pixels: the position of a local view in the padded latent, or
        0, 0 for a dilated view. `correction` is passed to DilatedPath.
        """
        run, pad = self.run, self.case.jitter
        padded = F.pad(x, (pad,) * 4)

        def local(crops, views, rows):
            return torch.cat([predict(c, (v.top * 8, v.left * 8)) for c, v in zip(crops.split(1), views)])

        def dilated(crops, views, rows):
            return torch.cat([predict(c, (0, 0)) for c in crops.split(1)])

        std = run.settings.sigma * run.weights.blur
        frame = fuse(local, padded, self.case.views(self.index, run.call), [], 0.0, lambda latent: latent, 0.0)
        whole = fuse(
            dilated, x, [], run.dilated, 1.0, lambda z: blur_for_dilation(z, run.stage.factor, std), correction
        )
        c2 = run.weights.dilated
        return (1 - c2) * frame[..., pad:-pad, pad:-pad] + c2 * whole


def assert_close(actual: Tensor, expected: Tensor, name: str) -> None:
    error = float((actual - expected).abs().max() / expected.abs().max())
    assert error <= TOLERANCE, f"{name}: relative error {error:.2e}"


def run_euler(case: Case, stage: RecordedStage) -> Tensor:
    """Samples a stage with k-diffusion's Euler, compares x with every recorded x, and returns the result."""
    recorded = {key: value for key, value in case.data.items() if key.startswith(f"stage{stage.index}_latent_after_")}

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        if stage.run.call >= 0:
            key = f"stage{stage.index}_latent_after_{stage.run.call}"
            if key in recorded:
                assert_close(x, recorded[key], key)
        stage.run.before_call(x, sigma[0])
        level = float(sigma[0])
        t = case.timestep(level)

        def predict(crop: Tensor, offset: tuple[int, int]) -> Tensor:
            return crop - level * case.guided_eps(crop / (level**2 + 1) ** 0.5, t, offset)

        return stage.fused(x, predict, 1.0)

    x = torch.zeros_like(stage.run.anchor)
    sampling = k_diffusion_sampling.load()
    return sampling.sample_euler(
        model, x, case.sigmas, disable=True, callback=lambda d: stage.run.after_step(d["i"], d["x"], d["denoised"])
    )


def run_ddim(case: Case, stage: RecordedStage) -> Tensor:
    """Samples a stage with DDIM, compares x with every recorded x, and returns the result."""
    timesteps = case.data["timesteps"].tolist()
    x = torch.zeros_like(stage.run.anchor)
    for i, t in enumerate(timesteps):
        stage.run.before_call(x, torch.tensor(float(t)))
        eps = stage.fused(x, lambda crop, offset, t=t: case.guided_eps(crop, t, offset), 0.0)
        previous = t - 1000 // len(timesteps)
        a, a_previous = case.alphas[t], case.alphas[max(previous, 0)]
        x = a_previous.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - a_previous).sqrt() * eps
        key = f"stage{stage.index}_latent_after_{i}"
        if key in case.data:
            assert_close(x, case.data[key], key)
    return x


@pytest.mark.parametrize("name", CASES)
def test_a_recorded_run_of_the_papers_pipeline_is_reproduced(name: str) -> None:
    case = Case(name)
    base = latent = case.data["phase0_final"]
    first = case.meta["first_stage_scale"]
    sampler = run_euler if case.meta["scheduler"] == "euler" else run_ddim
    for index in range(sum(key.endswith("_noise") for key in case.data)):
        size = case.data[f"stage{index}_noise"].shape[2:]
        anchor = F.interpolate(latent, size=size, mode="bicubic", align_corners=False)
        x = sampler(case, RecordedStage(case, index, anchor, first + index))
        last = f"stage{index}_latent_after_{case.meta['steps'] - 1}"
        assert_close(x, case.data[last], last)
        latent = finish_stage(x, base)
        assert_close(latent, case.data[f"phase{index + 1}_final"], f"phase{index + 1}_final")
