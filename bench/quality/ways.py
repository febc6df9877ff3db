"""Implements the compared methods for larger images. Each takes base latents and returns large images."""

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
from bench.quality.tiles import one_tile_after_another
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
"""Difference between the seeds of a run's stages."""


@dataclass(frozen=True)
class Sampling:
    """The parameters that all configurations share."""

    steps: int = 20
    guidance: float = GUIDANCE
    lcm: bool = False
    """Whether to use the sampler of consistency models instead of DDIM."""
    rows: int = 32
    """Number of rows (images x views x 2) in a batch of the model."""
    bfloat16: bool = True


@dataclass(frozen=True)
class Batch:
    """Images that are made together: their numbers, which are also their seeds, and their base."""

    numbers: list[int]
    latents: Tensor  # (B, 4, NATIVE, NATIVE)
    bases: np.ndarray  # (B, 128, 128, 3)


class Studio:
    """Makes images of one world with one model."""

    def __init__(self, model: SmallModel, sampling: Sampling, world: World):
        self.model, self.world = model, world
        self.sampling = sampling
        # weights in 16 bits are 1.4 times as fast as weights that are cast at every call
        self.unet = copy.deepcopy(model.unet).to(self._dtype)
        self.alphas = model.alphas_cumprod

    def base(self, numbers: list[int]) -> Tensor:
        """Samples base latents (B, 4, NATIVE, NATIVE)."""
        noise = initial_noise(numbers, NATIVE, NATIVE)
        return sample(noise, self.steps(numbers), self.guided(numbers).whole)

    def steps(self, seeds: Sequence[int], steps: int = 0, strength: float = 1.0) -> Steps:
        """Returns the last part of a schedule of `steps` steps. `strength` is the share that runs.

        If `steps` is 0, the schedule has as many steps as that of the base image. `seeds` determine the noise between
        the steps.
        """
        times = timesteps(steps or self.sampling.steps, strength, self.sampling.lcm)
        fresh = fresh_noise(seeds) if self.sampling.lcm else None
        return Steps(times, self.alphas, fresh)

    def decode(self, latents: Tensor) -> np.ndarray:
        """Decodes images (B, H, W, 3) in 0..1, rounded to 8 bits."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.sampling.bfloat16):
            decoded = torch.cat([self.model.decode(latent[None]).float() for latent in latents])
        return as_float(to_uint8((decoded.permute(0, 2, 3, 1).numpy() + 1) / 2))

    def make(self, configuration: Configuration, batch: Batch, scale: int) -> tuple[np.ndarray, float]:
        """Makes images (B, H, W, 3) in 0..1. Also returns the evaluations per image in units of the base pass."""
        kind, side = configuration.kind, scale * batch.bases.shape[1]
        if kind == "true":
            return np.stack([self.world.true_rendering(number, side, 1) for number in batch.numbers]), 0.0
        if kind in ("bicubic", "lanczos"):
            filter_ = Image.Resampling[kind.upper()]
            return np.stack([upscale(base, (side, side), filter_) for base in batch.bases]), 0.0
        if kind == "esrgan":
            return np.stack([as_float(to_uint8(enlarge(base, scale))) for base in batch.bases]), 0.0
        latents, units = self.latents(configuration, batch, scale)
        pictures = self.decode(latents)
        matched = kind == "demofusion" and configuration.picture_colors
        if matched and configuration.settings_at(scale).keep_colors:
            pictures = with_colors_of(pictures, batch.bases)
        return pictures, units

    def guided(self, numbers: list[int]) -> GuidedModel:
        """Returns the model for these images' prompts."""
        prompts = [self.world.prompt(number) for number in numbers]
        context = self.model.encode_prompts([*prompts, *[""] * len(prompts)]).to(self._dtype)
        return GuidedModel(self.unet, context, self.sampling.guidance, self.sampling.rows)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.sampling.bfloat16 else torch.float32

    def latents(self, configuration: Configuration, batch: Batch, scale: int) -> tuple[Tensor, float]:
        """Samples the latents (B, 4, h, w) of a configuration.

        Also returns the evaluations per image, as `make` counts them.

        For a configuration that does not use the model, returns an empty tensor and 0.
        """
        guided = self.guided(batch.numbers)
        size = (NATIVE * scale, NATIVE * scale)
        if configuration.kind == "direct":
            x = sample(initial_noise(batch.numbers, *size), self.steps(batch.numbers), guided.whole)
        elif configuration.kind in ("hires", "tiles"):
            x = self._denoised(batch, scale, configuration, guided)
        elif configuration.kind == "demofusion":
            x = self._demofusion(configuration, scale, batch, guided)
        else:
            return torch.empty(0), 0.0
        return x, guided.views / self.sampling.steps

    def _denoised(self, batch: Batch, scale: int, configuration: Configuration, guided: GuidedModel) -> Tensor:
        """Runs hires fix as in the webui, on the whole image or tile by tile, with int(denoise * steps) + 1 steps."""
        size = (NATIVE * scale, NATIVE * scale)
        if configuration.kind == "tiles" or configuration.upscaler == "esrgan":
            enlarged = self.encode(np.stack([enlarge(base, scale) for base in batch.bases]))
        else:
            enlarged = F.interpolate(batch.latents, size=size, mode="bilinear", antialias=False)
        seeds = [number + SEED_STEP for number in batch.numbers]
        noise, steps = initial_noise(seeds, *size), self.steps(seeds)
        count = int(min(configuration.denoise, 0.999) * self.sampling.steps) + 1
        steps = replace(steps, times=steps.times[-count:])
        if configuration.kind == "tiles":
            return one_tile_after_another(enlarged, noise, steps, guided)
        x = noised(enlarged, noise, torch.tensor(float(steps.times[0])), VariancePreserving(self.alphas))
        return sample(x, steps, guided.whole)

    def _demofusion(self, configuration: Configuration, scale: int, batch: Batch, guided: GuidedModel) -> Tensor:
        settings = configuration.settings_at(scale)
        work = StageWork(self, settings, configuration.flow, batch, guided)
        *_, x = run_stages(work, make_plan(settings, (NATIVE, NATIVE)), settings, batch.latents)
        return x

    def encode(self, pictures: np.ndarray) -> Tensor:
        """Encodes images (B, H, W, 3) in 0..1."""
        x = torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1
        with torch.autocast("cpu", torch.bfloat16, enabled=self.sampling.bfloat16):
            return torch.cat([self.model.encode(one[None]).float() for one in x])

    def stage(self, settings: Settings, stage: StagePlan, anchor: Tensor, batch: Batch, guided: GuidedModel) -> Tensor:
        seeds = [number + SEED_STEP * stage.number for number in batch.numbers]
        noise = initial_noise(seeds, *stage.size)
        space = VariancePreserving(self.alphas)
        run = StageRun(stage, settings, anchor, noise, SamplerTraits(space, StepDetector()))
        steps = self.steps(seeds, schedule_steps(self.sampling.steps, settings), settings.denoising_strength)
        return sample(torch.zeros_like(anchor), steps, guided.fused(run), run)

    def flow_stage(
        self, flow: FlowRow, task: tuple[Settings, StagePlan], anchor: Tensor, batch: Batch, guided: GuidedModel
    ) -> Tensor:
        """Samples a stage with the model run as a flow model."""
        settings, stage = task
        seeds = [number + SEED_STEP * stage.number for number in batch.numbers]
        run = StageRun(stage, settings, anchor, initial_noise(seeds, *stage.size), flow.traits())
        sigmas = flow.steps(schedule_steps(self.sampling.steps, settings), settings.denoising_strength)
        predict = guided.fused_flow(run, consistency=self.sampling.lcm)
        return sample_flow(torch.zeros_like(anchor), sigmas, predict, run, flow.sampler, fresh_noise(seeds))


@dataclass(frozen=True)
class StageWork:
    """The operations of a batch's stages (see lib_demofusion.method.stages); images are (H, W, 3) in 0..1."""

    studio: Studio
    settings: Settings
    flow: FlowRow | None
    batch: Batch
    guided: GuidedModel

    def stopped(self) -> bool:
        """Returns False, because a measurement is not stopped in the middle of an image."""
        return False

    def decode(self, latent: Tensor) -> np.ndarray:
        """Decodes the images of a latent."""
        return self.studio.decode(latent)

    def enlarge(self, image: np.ndarray, stage: StagePlan) -> np.ndarray:
        """Upscales an image to the size of a stage, as the webui does."""
        return upscale(image, stage.pixels, Image.Resampling.LANCZOS)

    def encode(self, images: Iterable[np.ndarray]) -> Tensor:
        """Encodes images."""
        return self.studio.encode(np.stack(list(images)))

    def sample(self, stage: StagePlan, anchor: Tensor, finish: Finish) -> Tensor:
        """Samples a stage."""
        if self.flow is None:
            return finish(self.studio.stage(self.settings, stage, anchor, self.batch, self.guided))
        return finish(self.studio.flow_stage(self.flow, (self.settings, stage), anchor, self.batch, self.guided))


def with_colors_of(pictures: np.ndarray, bases: np.ndarray) -> np.ndarray:
    """Matches the colors of images (B, H, W, 3) in 0..1 to their bases (B, h, w, 3), as in the webui."""
    both = ((torch.from_numpy(part).permute(0, 3, 1, 2) * 2 - 1).contiguous() for part in (pictures, bases))
    matched = torch.stack([match_colors_(picture, base) for picture, base in zip(*both)])
    return as_float(to_uint8((matched.permute(0, 2, 3, 1).numpy() + 1) / 2))


def batches(count: int, size: int) -> Sequence[range]:
    """Returns the numbers from 0 to count in groups."""
    return [range(first, min(first + size, count)) for first in range(0, count, size)]
