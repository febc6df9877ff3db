"""Runs the method inside a sampler.

This file prepares the anchor of a stage, handles every model call of the sampler, and matches the statistics of the
result to the base latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from lib_demofusion.method.batching import Evaluate, ViewBatches
from lib_demofusion.method.filters import blur_for_dilation, match_low_band, match_statistics, mean_and_std, smooth
from lib_demofusion.method.fusion import DilatedPath, Feathering, LocalPath, fuse
from lib_demofusion.method.plan import Plan, StagePlan
from lib_demofusion.method.residual import NoiseSpace, blend_noised_, blend_signal_, noised, scales_at
from lib_demofusion.method.sampler_checks import CallGuard
from lib_demofusion.method.sampler_steps import StepDetector
from lib_demofusion.method.schedule import Weights, weights_at
from lib_demofusion.method.views import dilated_views, jitter_generator, local_views
from lib_demofusion.settings.fields import Settings

OTHER_SIZE = "this sampler also calls its model with images of another size; choose another sampler"
"""The text of the error for samplers that change the size of x, such as Euler SMEA in reForge."""


def make_anchor(latent: Tensor, plan: Plan, stage: StagePlan) -> Tensor:
    """Upscales the latent (B, C, h, w) of the previous stage to the size of `stage`, as in the paper.

    This is only one kind of anchor. `stages.stage_anchor` chooses the kind from the settings.
    """
    return F.interpolate(cropped(latent, plan, stage), size=stage.size, mode="bicubic", align_corners=False)


def mix_anchors(pixels: Tensor, latent: Tensor, enlargement: float) -> Tensor:
    """Combines the low frequencies of `latent` (upscaled as a latent) and the high frequencies of `pixels`.

    `pixels` was upscaled as an image and then encoded. Both arguments are latents (B, C, H, W), enlarged by the factor
    `enlargement` in each direction. From `pixels`, the result gets only detail that is too fine for a latent before its
    enlargement. Source of the idea: ScaleDiff, arXiv 2510.25818.
    """
    return pixels + smooth(latent - pixels, enlargement / 2)


def cropped(x: Tensor, plan: Plan, stage: StagePlan, factor: int = 1) -> Tensor:
    """Crops the previous image x (..., h, w) to the part that `stage` enlarges.

    Stage 1 enlarges only the part `plan.crop` of the base image. All later stages enlarge the whole previous image. x
    can be a latent or an image: `factor` is the side of a latent cell in x, so it is 1 for a latent and CELL for an
    image.
    """
    return plan.crop.times(factor).take(x) if stage.number == 1 else x


def finish_stage(x: Tensor, base: Tensor, colours: Tensor | None = None) -> Tensor:
    """Matches the result x (B, C, H, W) of a stage to the base latent, separately for each image.

    Each image gets the mean and the standard deviation of all values of its base latent. `colours` is the part
    (B, C, h, w) of the base latent that the stage shows. If `colours` is given, the colors of large areas are then
    matched to this part (see `match_low_band`).
    """
    x = match_statistics(x, *mean_and_std(base))
    return x if colours is None else match_low_band(x, colours)


@dataclass(frozen=True)
class SamplerTraits:
    """The properties of a sampler that determine how and when the skip residual is applied."""

    space: NoiseSpace
    detector: StepDetector
    """Determines which model calls begin a step."""
    stochastic: bool = False
    """Whether the sampler adds fresh noise."""
    guard: CallGuard | None = None
    """Raises UnknownSampler if the sampler's calls do not fit the detector. None if this is not checked."""


class StageRun:
    """One run of a sampler for one stage.

    The host calls `before_call` before every model call, `after_step` in the sampler's callback, and `end` after the
    run. During each model call, the host calls `denoise` once for every batch of conds and unconds that it evaluates
    together.
    """

    def __init__(
        self,
        stage: StagePlan,
        settings: Settings,
        anchor: Tensor,
        noise: Tensor,
        traits: SamplerTraits,
    ):
        self.stage = stage
        self.settings = settings
        self.anchor = anchor
        self.noise = noise
        self.space, self.detector, self.stochastic = traits.space, traits.detector, traits.stochastic
        self._guard = traits.guard
        self.call = -1
        """Number of the current model call of the sampler, counted from 0. -1 before the first call."""
        self.predictions = 0
        """Number of calls of `denoise`. If this number is 0 at the end, the host has sampled without DemoFusion."""
        self.level = self.timestep = 0.0
        """Noise level of the current model call in the sampler's own units, and the model's timestep for it."""
        self.weights = Weights(1.0, 1.0, 1.0)
        self.local = local_views(stage.size, stage.window, stage.stride, unit=stage.unit)
        self.dilated = dilated_views(stage.size, stage.factor, stage.unit)
        self._feathering = Feathering(settings.feather)
        self._denoised: Tensor | None = None
        self._again: tuple[Tensor, float] | None = None

    def start(self, x: Tensor, level: Tensor) -> None:
        """Replaces the values of x (B, C, H, W) with the noised anchor at the noise level `level` (see `noised`).

        The noise is multiplied by 1 + the field Extra noise. `before_call` does this at the first model call. The host
        must call `start` itself only if the model receives copies of x (`StepDetector.copies_x`). It must then call
        `start` before the sampler runs.
        """
        noise = self.noise * (1 + self.settings.extra_noise)
        x.copy_(noised(self.anchor, noise, level, self.space))

    def before_call(self, x: Tensor, level: Tensor, shown: Tensor | None = None) -> None:
        """Blends the skip residual into x (B, C, H, W) in place if a step begins.

        Also computes the weights of this call and, if the field Jitter is on, new positions of the local views. `level`
        is the scalar noise level that the sampler passes to its model. If `x` is a copy of the tensor that the sampler
        passes to its model, `shown` is the sampler's tensor. The host must then write the blended copy back to this
        tensor. Raises ValueError if x does not have the size of the stage. Raises UnknownSampler if the sampler's calls
        do not fit its detector.
        """
        if x.shape[-2:] != self.anchor.shape[-2:]:
            raise ValueError(OTHER_SIZE)
        self.call += 1
        # read only once, because reading a number from the device waits for the device's queue
        level, self.timestep = self.space.read(level)
        self.level = float(level)
        self.weights = weights_at(self.timestep, self.settings)
        if self.settings.jitter:
            generator = jitter_generator(self.stage.number, self.call)
            stage = self.stage
            self.local = local_views(stage.size, stage.window, stage.stride, generator, stage.unit)
        if self.detector.is_step_start(self.level):
            if self._guard is not None:
                self._guard.step_begins(x if shown is None else shown)
            self._blend(x, level, self.weights.skip)
            # used only with UniPC: it discards the x of every model call except the first, so `after_step` blends the
            # skip residual into the x that UniPC keeps
            self._again = (level, self.weights.skip) if self.call > 0 else None

    def after_step(self, i: int, x: Tensor, denoised: Tensor, shown: Tensor | None = None) -> None:
        """Handles the sampler's callback for step `i`.

        The callback receives `x` and `denoised`, the prediction of the clean latent. If `x` is only a copy of the
        callback's x, `shown` is the callback's x. With UniPC, blends the skip residual into `x` in place. Raises
        UnknownSampler if the sampler's calls do not fit its detector.
        """
        if self._guard is not None:
            self._guard.callback(x if shown is None else shown)
        self.detector.after_step(i)
        if self.detector.blends_in_callback and self._again is not None:
            level, c1 = self._again
            scale = self.detector.callback_scale(i, float(level))
            if scale is not None:
                self._blend(x.mul_(scale), level, c1)
                x.div_(scale)
            self._again = None
        if self.stochastic:
            # a copy, because LCM writes to `denoised` after its callback
            self._denoised = denoised.clone()

    def end(self) -> None:
        """Checks the last model call after the sampler has returned.

        Raises UnknownSampler if the sampler's calls do not fit its detector.
        """
        if self._guard is not None:
            self._guard.end()

    def denoise(
        self, evaluate: Evaluate, x: Tensor, correction: Tensor | float, batches: ViewBatches, copies: int = 1
    ) -> Tensor:
        """Computes the fused prediction for x (N, C, H, W).

        `correction` and `copies` are described at `DilatedPath`.
        """
        self.predictions += 1
        local = LocalPath(self.local, self._feathering)
        dilated = DilatedPath(self.dilated, self._blur, correction, copies)
        return fuse(partial(batches.predictions, evaluate), x, local, dilated, self.weights.dilated)

    def _blur(self, x: Tensor) -> Tensor:
        """Blurs x (B, C, H, W) for the dilated views of this call."""
        return blur_for_dilation(x, self.stage.factor, self.settings.sigma * self.weights.blur)

    def _blend(self, x: Tensor, level: Tensor, c1: float) -> None:
        """Blends the anchor into x in place. `c1` is the weight of the anchor.

        At the first model call, the noised anchor replaces x instead, because the webui adds too much noise to the x of
        DDIM (see `schedule.TIMESTEP_SAMPLERS`).
        """
        if self.call == 0:
            self.start(x, level)
        elif self.stochastic and self._denoised is not None:
            blend_signal_(x, self.anchor, self._denoised, c1, self.space.signal_scale(level))
        else:
            blend_noised_(x, self.anchor, self.noise, scales_at(self.space, level), c1)
