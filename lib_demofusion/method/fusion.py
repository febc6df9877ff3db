"""The paper's fusion: one prediction for the whole latent, from those on its local views and on its dilated views."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lib_demofusion.method.batching import Work
from lib_demofusion.method.feathering import Feathering
from lib_demofusion.method.views import DilatedView, LocalView, View

Predictions = Iterator[tuple[View, Tensor]]

Predict = Callable[[Sequence[Work], int], Predictions]
"""Yields each view of the work with the model's prediction for all rows, in order (see ViewBatches.predictions)."""


@dataclass(frozen=True)
class LocalPath:
    """Overlapping views of the latent itself, and how they are weighed where they overlap."""

    views: Sequence[LocalView]
    feathering: Feathering = field(default_factory=Feathering)
    """May be used again for calls with the same views. Without feather the mean is the paper's plain one."""

    def is_all_of(self, x: Tensor) -> bool:
        """Returns whether there is one view only, of all of x (B, C, H, W)."""
        return len(self.views) == 1 and self.views[0].take(x).shape == x.shape


@dataclass(frozen=True)
class DilatedPath:
    """Sub-grids of the blurred latent, and the correction of their predictions, which are applied to the sharp one.

    `correction` is the share of x - blur(x) to add, a number or one for each row (B, 1, 1, 1): 1 where the model
    is asked for x0 and predicts eps, 0 where it is asked for eps.
    `copies` says how many times over x holds the same B / copies images, one set after the other, as it does for cond
    and uncond: one set is blurred for all.
    """

    views: Sequence[DilatedView]
    blur: Callable[[Tensor], Tensor]
    correction: Tensor | float
    copies: int = 1

    def blurred(self, x: Tensor) -> Tensor:
        """Returns the blurred images of x (B, C, H, W), each once."""
        return self.blur(x[: len(x) // self.copies])


def fuse(predict: Predict, x: Tensor, local: LocalPath, dilated: DilatedPath, c2: float) -> Tensor:
    """Returns (1 - c2) local + c2 (dilated + correction (x - blur(x))), the prediction for x (B, C, H, W).

    (arXiv 2311.16973, section 3.4; the last term is the noise's, which is predicted on the blurred latent but taken
    from the sharp one.) A path of weight zero is not evaluated. Beyond x this holds one accumulator, the views'
    weights, the blurred latent and a batch of views.
    """
    if c2 <= 0 and local.is_all_of(x):
        return next(values for _, values in predict([(local.views[0], x)], len(x)))
    blurred = dilated.blurred(x) if c2 > 0 else x
    predictions = predict(_work(x, blurred, local, dilated, c2), len(x))
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    if c2 < 1:
        _add_local_mean(out, predictions, local, 1 - c2)
    if c2 > 0:
        _add_dilated(out, predictions, c2)
        _add_correction(out, x, blurred, dilated.correction, c2)
    return out.to(x.dtype)


def _work(x: Tensor, blurred: Tensor, local: LocalPath, dilated: DilatedPath, c2: float) -> list[Work]:
    """Returns the views to evaluate, each with the latent that it is taken from; those of no weight are left out."""
    work: list[Work] = [(view, x) for view in local.views] if c2 < 1 else []
    return work + [(view, blurred) for view in dilated.views] if c2 > 0 else work


def _add_local_mean(out: Tensor, predictions: Predictions, local: LocalPath, share: float) -> None:
    """Makes of `out` (B, C, H, W), all zero, `share` times the weighed mean of the local views' predictions.

    A cell in no view stays zero.
    """
    for view, (_, values) in zip(local.views, predictions):
        local.feathering.add(view, values, out)
    local.feathering.divide(out, local.views, share)


def _add_dilated(out: Tensor, predictions: Predictions, share: float) -> None:
    """Adds `share` times the predictions that are left to their views' cells of `out` (B, C, H, W)."""
    for view, values in predictions:
        view.add_to(out, values, share)


def _add_correction(out: Tensor, x: Tensor, blurred: Tensor, correction: Tensor | float, share: float) -> None:
    """Adds share correction (x - blurred) to `out` (B, C, H, W); nothing as large as a latent is made on the way."""
    factor = correction if isinstance(correction, Tensor) else out.new_full((), correction)
    factor = factor.to(out.dtype).expand(len(x), 1, 1, 1)
    for first in range(0, len(x), len(blurred)):
        rows = slice(first, first + len(blurred))
        out[rows].addcmul_(x[rows], factor[rows], value=share).addcmul_(blurred, factor[rows], value=-share)
