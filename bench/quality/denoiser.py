"""Computes guided predictions of the small model for whole latents or for views, and counts the evaluated cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bench.quality.flow import clean_latent
from bench.quality.sampler import Predict
from lib_demofusion.method.batching import ViewBatches
from lib_demofusion.method.stage import StageRun
from lib_demofusion.method.views import View

NATIVE = 16
"""Side, in latent cells, of the images on which the model was trained."""


class GuidedModel:
    """A UNet with classifier-free guidance for a batch of B images.

    `context` (2 B, 77, C) contains the conds of the images, then their unconds. At a guidance of 1, the unconds have no
    effect and are omitted, as in the webui. `rows` is the maximum number of rows in a call of the UNet for views:
    images x views x 2 (for cond and uncond). A call has at least one view of every image, even if that exceeds `rows`.
    """

    def __init__(self, unet: nn.Module, context: Tensor, guidance: float, rows: int):
        self._unet = unet
        self._guidance = guidance
        self._copies = 1 if guidance == 1 else 2
        """Number of rows that a call has for each view of an image: 2 (cond and uncond), or 1 (cond)."""
        self._context = context[: len(context) * self._copies // 2]
        self._batches = ViewBatches(max(1, rows // len(self._context)))
        self.evaluations = 0.0
        """Number of latent cells that the model has evaluated for each image, divided by the cells of a base image.

        The cond and the uncond of a cell count as one cell.
        """

    def whole(self, x: Tensor, t: float) -> Tensor:
        """Predicts the noise in x (B, 4, h, w) at the timestep t. The model evaluates each image as a whole."""
        return self._guided(self._evaluate(self._repeated(x), t, self._context))

    def fused(self, run: StageRun) -> Predict:
        """Returns a function that predicts the noise of a stage's latent by fusing the predictions of its views."""
        # no correction: the sampler subtracts the noise from the unblurred x, which still has its details
        return self._fused(run, self._evaluate, correction=0.0)

    def fused_flow(self, run: StageRun, lcm: bool = False) -> Predict:
        """Returns a function that predicts the clean latent of a stage by fusing the predictions of its views.

        The model runs as a flow model. Set `lcm` if it has the LoRA for few steps, so that it is a consistency model.
        """

        def clean(x: Tensor, sigma: float, context: Tensor) -> Tensor:
            return clean_latent(lambda scaled, t: self._evaluate(scaled, t, context), x, sigma, lcm)

        # dilated views come from a blurred x, so their clean latents lack detail; the correction adds x - blur(x)
        return self._fused(run, clean, correction=1.0)

    def _fused(self, run: StageRun, model: Callable[[Tensor, float, Tensor], Tensor], correction: float) -> Predict:
        def predict(x: Tensor, level: float) -> Tensor:
            def evaluate(crops: Tensor, views: Sequence[View], rows: slice) -> Tensor:
                return model(crops, level, self._context[rows].repeat(len(views), 1, 1))

            return self._guided(run.denoise(evaluate, self._repeated(x), correction, self._batches))

        return predict

    def _evaluate(self, x: Tensor, t: float, context: Tensor) -> Tensor:
        self.evaluations += math.prod(x.shape[-2:]) / NATIVE**2 * len(x) / len(self._context)
        steps = torch.full((len(x),), t, device=x.device)
        with torch.no_grad():
            return self._unet(x.to(context.dtype), steps, context).float()

    def _repeated(self, x: Tensor) -> Tensor:
        return torch.cat([x] * self._copies)

    def _guided(self, eps: Tensor) -> Tensor:
        if self._copies == 1:
            return eps
        cond, uncond = eps.chunk(2)
        return uncond + self._guidance * (cond - uncond)
