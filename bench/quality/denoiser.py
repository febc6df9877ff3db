"""Computes guided predictions of the small model on whole latents or views, and counts the evaluations."""

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
"""Side of the model's own latent."""


class GuidedModel:
    """A UNet with classifier-free guidance. Context (2 B, 77, C) contains the prompts, then the unconditional rows.

    At a guidance of 1 the unconditional rows change nothing, and are omitted as in the webui.
    """

    def __init__(self, unet: nn.Module, context: Tensor, guidance: float, rows: int):
        self._unet = unet
        self._guidance = guidance
        self._calls = 1 if guidance == 1 else 2
        """Number of rows in a call of the model for each image: cond and uncond, or cond alone."""
        self._context = context[: len(context) * self._calls // 2]
        self._rows = rows
        self._batches = ViewBatches(max(1, rows // len(self._context)))
        self.views = 0.0
        """Evaluations per image so far. One evaluation is a call for one image of native size, with all of its rows."""

    def whole(self, x: Tensor, t: int) -> Tensor:
        """Predicts the noise in the whole latent."""
        return self._guided(self._evaluate(self._rows_of(x), t, self._context))

    def fused(self, run: StageRun) -> Predict:
        """Returns the prediction that a stage fuses from views."""

        def predict(x: Tensor, t: int) -> Tensor:
            def evaluate(crops: Tensor, views: Sequence[View], rows: slice) -> Tensor:
                return self._evaluate(crops, t, self._context[rows].repeat(len(views), 1, 1))

            # 0.0 because the model predicts noise: the dilated path does not restore the part that the blur removed
            return self._guided(run.denoise(evaluate, self._rows_of(x), 0.0, self._batches))

        return predict

    def fused_flow(self, run: StageRun, consistency: bool = False) -> Callable[[Tensor, float], Tensor]:
        """Returns a function of x (B, 4, h, w) and sigma: the clean latent that a stage fuses from views."""

        def predict(x: Tensor, sigma: float) -> Tensor:
            def evaluate(crops: Tensor, views: Sequence[View], rows: slice) -> Tensor:
                context = self._context[rows].repeat(len(views), 1, 1)
                return clean_latent(lambda scaled, t: self._evaluate(scaled, t, context), crops, sigma, consistency)

            # the velocity is predicted from the blurred latent and applied to the sharp one
            return self._guided(run.denoise(evaluate, self._rows_of(x), 1.0, self._batches))

        return predict

    def _evaluate(self, x: Tensor, t: float, context: Tensor) -> Tensor:
        self.views += math.prod(x.shape[-2:]) / NATIVE**2 * len(x) / len(self._context)
        steps = torch.full((len(x),), t, device=x.device)
        with torch.no_grad():
            return self._unet(x.to(context.dtype), steps, context).float()

    def _rows_of(self, x: Tensor) -> Tensor:
        return torch.cat([x] * self._calls)

    def _guided(self, eps: Tensor) -> Tensor:
        if self._calls == 1:
            return eps
        cond, uncond = eps.chunk(2)
        return uncond + self._guidance * (cond - uncond)
