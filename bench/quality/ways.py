"""Implements the compared methods for larger images. Each method makes large images from a batch of base images."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bench.quality.configurations import Configuration
from bench.quality.denoiser import NATIVE, GuidedModel
from bench.quality.esrgan import enlarge
from bench.quality.flow import FlowRow, sample_flow
from bench.quality.pictures import as_float, upscale
from bench.quality.sampler import Steps, fresh_noise, initial_noise, sample, timesteps
from bench.quality.worlds import World
from lib_demofusion.method.colors import match_colors_
from lib_demofusion.method.plan import StagePlan, make_plan
from lib_demofusion.method.residual import VariancePreserving, noised
from lib_demofusion.method.sampler_steps import StepDetector
from lib_demofusion.method.schedule import schedule_steps
from lib_demofusion.method.stage import SamplerTraits, StageRun
from lib_demofusion.method.stages import Finish, run_stages
from lib_demofusion.settings.fields import Settings
from trial.collage.scenes import to_uint8
from trial.small_model import GUIDANCE, SmallModel

SEED_STEP = 1_000_003
"""Difference between the seeds of two consecutive stages of an image."""


@dataclass(frozen=True)
class Sampling:
    """The parameters of sampling that all configurations of a table share."""

    steps: int = 20
    guidance: float = GUIDANCE
    lcm: bool = False
    """Whether to use the sampler LCM, which is for consistency models, instead of DDIM."""
    rows: int = 32
    """Maximum number of rows in a call of the UNet for views: images x views x 2 (for cond and uncond)."""
    bfloat16: bool = True
    """Whether the model runs in bfloat16 instead of float32."""


def few_steps(steps: int, bfloat16: bool = True) -> Sampling:
    """Returns the parameters for the model with the LoRA for few steps: the sampler LCM and guidance 1."""
    return Sampling(steps, guidance=1.0, lcm=True, bfloat16=bfloat16)


@dataclass(frozen=True)
class Batch:
    """Base images that are enlarged together. The number of a base image selects its prompt, and is its seed."""

    numbers: list[int]
    latents: Tensor  # (B, 4, NATIVE, NATIVE)
    bases: np.ndarray  # (B, 128, 128, 3)


class Studio:
    """Makes images of one world with one model."""

    def __init__(self, model: SmallModel, sampling: Sampling, world: World):
        self.model, self.world = model, world
        self.sampling = sampling
        self._dtype = torch.bfloat16 if sampling.bfloat16 else torch.float32
        # weights in bfloat16 are 1.4 times as fast as weights in float32 that are cast to bfloat16 at every call
        self.unet = copy.deepcopy(model.unet).to(self._dtype)
        self.alphas = model.alphas_cumprod

    def base(self, numbers: list[int]) -> Tensor:
        """Samples the latents (B, 4, NATIVE, NATIVE) of the base images with these numbers."""
        noise = initial_noise(numbers, NATIVE, NATIVE)
        return sample(noise, self.steps(numbers), self.guided(numbers).whole)

    def steps(self, seeds: Sequence[int], steps: int = 0, strength: float = 1.0) -> Steps:
        """Returns the last part of a schedule of `steps` steps. `strength` is the share that runs.

        If `steps` is 0, the schedule has as many steps as the schedule of the base image. `seeds` determine the noise
        that LCM adds between its steps.
        """
        times = timesteps(steps or self.sampling.steps, strength, self.sampling.lcm)
        return Steps(times, self.alphas, fresh_noise(seeds) if self.sampling.lcm else None)

    def guided(self, numbers: list[int]) -> GuidedModel:
        """Returns the model with the prompts of the images with these numbers."""
        prompts = [self.world.prompt(number) for number in numbers]
        context = self.model.encode_prompts([*prompts, *[""] * len(prompts)]).to(self._dtype)
        return GuidedModel(self.unet, context, self.sampling.guidance, self.sampling.rows)

    def decode(self, latents: Tensor) -> np.ndarray:
        """Decodes latents (B, 4, h, w) to images (B, H, W, 3) in 0..1, rounded to 8 bits."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.sampling.bfloat16):
            return _from_tensor(torch.cat([self.model.decode(latent[None]).float() for latent in latents]))

    def encode(self, pictures: np.ndarray) -> Tensor:
        """Encodes images (B, H, W, 3) in 0..1 to latents (B, 4, H / 8, W / 8)."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.sampling.bfloat16):
            return torch.cat([self.model.encode(one[None]).float() for one in _as_tensor(pictures)])

    def make(self, configuration: Configuration, batch: Batch, scale: int) -> tuple[np.ndarray, float]:
        """Enlarges a batch to images (B, H, W, 3) in 0..1. Also returns the cost of one image in units."""
        if not configuration.uses_model:
            return self._without_model(configuration.kind, batch, scale), 0.0
        latents, units = self.latents(configuration, batch, scale)
        pictures = self.decode(latents)
        matched = configuration.kind == "demofusion" and configuration.picture_colors
        if matched and configuration.settings_at(scale).keep_colors:
            pictures = with_colors_of(pictures, batch.bases)
        return pictures, units

    def _without_model(self, kind: str, batch: Batch, scale: int) -> np.ndarray:
        side = scale * batch.bases.shape[1]
        if kind == "true":
            return np.stack([self.world.true_rendering(number, side, 1) for number in batch.numbers])
        if kind == "esrgan":
            return np.stack([as_float(to_uint8(enlarge(base, scale))) for base in batch.bases])
        return np.stack([upscale(base, (side, side), Image.Resampling.LANCZOS) for base in batch.bases])

    def latents(self, configuration: Configuration, batch: Batch, scale: int) -> tuple[Tensor, float]:
        """Samples the latents (B, 4, h, w) of the large images, with a configuration that uses the model.

        Also returns the cost of one image in units.
        """
        guided = self.guided(batch.numbers)
        if configuration.kind == "hires":
            x = self._hires_fix(configuration, batch, scale, guided)
        else:
            settings = configuration.settings_at(scale)
            work = StageWork(self, settings, configuration.flow, batch, guided)
            *_, x = run_stages(work, make_plan(settings, (NATIVE, NATIVE)), settings, batch.latents)
        return x, guided.evaluations / self.sampling.steps

    def _hires_fix(self, configuration: Configuration, batch: Batch, scale: int, guided: GuidedModel) -> Tensor:
        """Runs hires fix as the webui does, with int(denoise * steps) + 1 steps."""
        size = (NATIVE * scale, NATIVE * scale)
        if configuration.upscaler == "esrgan":
            enlarged = self.encode(np.stack([enlarge(base, scale) for base in batch.bases]))
        else:
            enlarged = F.interpolate(batch.latents, size=size, mode="bilinear", antialias=False)
        seeds = [number + SEED_STEP for number in batch.numbers]
        noise, steps = initial_noise(seeds, *size), self.steps(seeds)
        count = int(min(configuration.denoise, 0.999) * self.sampling.steps) + 1
        steps = replace(steps, times=steps.times[-count:])
        space, level = VariancePreserving(self.alphas), torch.tensor(float(steps.times[0]))
        return sample(noised(enlarged, noise, level, space), steps, guided.whole)


@dataclass(frozen=True)
class StageWork:
    """Implements the operations that `run_stages` calls, for a batch of images. Images are (H, W, 3) in 0..1."""

    studio: Studio
    settings: Settings
    flow: FlowRow | None
    batch: Batch
    guided: GuidedModel

    def stopped(self) -> bool:
        """Returns False, because a measurement has no buttons to stop it."""
        return False

    def decode(self, latent: Tensor) -> np.ndarray:
        """Decodes latents (B, 4, h, w) to images."""
        return self.studio.decode(latent)

    def enlarge(self, image: np.ndarray, stage: StagePlan) -> np.ndarray:
        """Upscales an image to the size of a stage, like the webui's upscaler Lanczos."""
        return upscale(image, stage.pixels, Image.Resampling.LANCZOS)

    def encode(self, images: Iterable[np.ndarray]) -> Tensor:
        """Encodes images to latents (B, 4, h, w)."""
        return self.studio.encode(np.stack(list(images)))

    def sample(self, stage: StagePlan, anchor: Tensor, finish: Finish) -> Tensor:
        """Samples a stage with DDIM or LCM, or with a sampler for flow models."""
        seeds = [number + SEED_STEP * stage.number for number in self.batch.numbers]
        count, strength = schedule_steps(self.studio.sampling.steps, self.settings), self.settings.denoising_strength
        diffusion = SamplerTraits(VariancePreserving(self.studio.alphas), StepDetector())
        traits = diffusion if self.flow is None else self.flow.traits()
        run = StageRun(stage, self.settings, anchor, initial_noise(seeds, *stage.size), traits)
        x = torch.zeros_like(anchor)  # the run replaces x before the first step
        if self.flow is None:
            return finish(sample(x, self.studio.steps(seeds, count, strength), self.guided.fused(run), run))
        predict = self.guided.fused_flow(run, self.studio.sampling.lcm)
        sigmas = self.flow.steps(count, strength)
        return finish(sample_flow(x, sigmas, predict, run, self.flow.sampler, fresh_noise(seeds)))


def with_colors_of(pictures: np.ndarray, bases: np.ndarray) -> np.ndarray:
    """Matches the colors of images (B, H, W, 3) in 0..1 to their base images (B, h, w, 3), as in the webui."""
    pairs = zip(_as_tensor(pictures).contiguous(), _as_tensor(bases).contiguous())
    return _from_tensor(torch.stack([match_colors_(picture, base) for picture, base in pairs]))


def _as_tensor(pictures: np.ndarray) -> Tensor:
    """Converts images (B, H, W, 3) in 0..1 to the model's format (B, 3, H, W) in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1


def _from_tensor(x: Tensor) -> np.ndarray:
    """Converts from the model's format to images (B, H, W, 3) in 0..1, rounded to 8 bits."""
    return as_float(to_uint8((x.permute(0, 2, 3, 1).numpy() + 1) / 2))


def batches(numbers: Sequence[int], size: int) -> list[list[int]]:
    """Divides numbers into groups of `size`. The last group can be smaller."""
    return [list(numbers[first : first + size]) for first in range(0, len(numbers), size)]
