"""Fuses the predictions of local views and dilated views into one prediction for the whole latent, as in the paper.

`Feathering` contains the weights of local views in their overlaps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lib_demofusion.method.batching import Work
from lib_demofusion.method.views import DilatedView, LocalView, Size, View, taper


class Feathering:
    """The weights of the local views of one stage.

    `feather` is the fraction of a view's side over which its weights fall towards each border (see `taper`). With 0,
    all cells have the same weight. The weights of a view are cached for the whole stage. The sum of the weights of all
    views is cached until the views change. This saves time on a GPU, where each new small tensor needs a kernel launch.
    """

    def __init__(self, feather: float = 0.0):
        self._feather = feather
        self._tapers: dict[tuple[Size, torch.device], Tensor] = {}
        self._views: list[LocalView] = []
        self._sum: Tensor | None = None

    def add(self, view: LocalView, values: Tensor, out: Tensor) -> None:
        """Adds the weighted `values` (..., h, w) of a view to its cells of `out` (..., H, W)."""
        if self._feather <= 0:
            view.add_to(out, values)
            return
        view.take(out).addcmul_(values.to(out.dtype), self._taper(view.crop_size, out.device))

    def divide(self, out: Tensor, views: Sequence[LocalView], share: float) -> None:
        """Turns the weighted sums in `out` (..., H, W) into weighted means over `views`, times `share`, in place.

        Cells that no view covers stay zero.
        """
        if self._sum is None or self._sum.device != out.device or self._views != list(views):
            self._views, self._sum = list(views), self._sum_of(views, out)
        out *= share / self._sum

    def _sum_of(self, views: Sequence[LocalView], like: Tensor) -> Tensor:
        """Returns the sum of the weights at each cell, (H, W) float32, or 1 if no view covers the cell."""
        total = torch.zeros(like.shape[-2:], dtype=torch.float32, device=like.device)
        for view in views:
            view.add_to(total, self._taper(view.crop_size, total.device))
        return total.masked_fill_(total == 0, 1)

    def _taper(self, size: Size, device: torch.device) -> Tensor:
        """Returns the weights (h, w) of a view of this size."""
        if (size, device) not in self._tapers:
            self._tapers[size, device] = taper(size, self._feather, device)
        return self._tapers[size, device]


Predictions = Iterator[tuple[View, Tensor]]

Predict = Callable[[Sequence[Work], int], Predictions]
"""A function of the work and the number of rows. It yields each view of the work, in order, and the model's prediction
for all rows of this view (see ViewBatches.predictions)."""


@dataclass(frozen=True)
class LocalPath:
    """Overlapping views of the latent, and their weights in the overlaps."""

    views: Sequence[LocalView]
    feathering: Feathering = field(default_factory=Feathering)
    """The weights in the overlaps. With a feather of 0, overlaps are averaged as in the paper.

    Use the same object for all calls of a stage, because it caches the weights.
    """

    def is_all_of(self, x: Tensor) -> bool:
        """Returns whether a single view covers all of x (B, C, H, W)."""
        return len(self.views) == 1 and self.views[0].take(x).shape == x.shape


@dataclass(frozen=True)
class DilatedPath:
    """Dilated views of the blurred latent, and the correction for applying their predictions to the sharp latent.

    `correction` is the factor of x - blur(x) that is added to the prediction: one number, or a tensor (B, 1, 1, 1) with
    a number for each row. For a model that predicts eps, the correction is 1 if the host's wrapper of the model returns
    x0, and 0 if the wrapper returns eps.

    `copies` is the number of times that x repeats the same B / copies images, such as 2 for cond and uncond. The
    images are blurred only once.
    """

    views: Sequence[DilatedView]
    blur: Callable[[Tensor], Tensor]
    correction: Tensor | float
    copies: int = 1

    def blurred(self, x: Tensor) -> Tensor:
        """Returns the blurred images of x (B, C, H, W), without the repetitions."""
        return self.blur(x[: len(x) // self.copies])


def fuse(predict: Predict, x: Tensor, local: LocalPath, dilated: DilatedPath, c2: float) -> Tensor:
    """Computes the prediction (1 - c2) local + c2 (dilated + correction (x - blur(x))) for x (B, C, H, W).

    Source: arXiv 2311.16973, section 3.4. The term with `correction` is needed because the noise is predicted from the
    blurred latent but subtracted from the sharp latent. A path with weight zero is not evaluated. Besides x, memory is
    needed for one accumulator, the weights of the views, the blurred latent, and one batch of views.
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
    """Returns the views to evaluate, each with the latent that it is cropped from. Omits a path with weight zero."""
    work: list[Work] = [(view, x) for view in local.views] if c2 < 1 else []
    return work + [(view, blurred) for view in dilated.views] if c2 > 0 else work


def _add_local_mean(out: Tensor, predictions: Predictions, local: LocalPath, share: float) -> None:
    """Accumulates `share` times the weighted mean of the local views' predictions in `out` (B, C, H, W).

    `out` must be zero. Cells that no view covers stay zero.
    """
    for view, (_, values) in zip(local.views, predictions):
        local.feathering.add(view, values, out)
    local.feathering.divide(out, local.views, share)


def _add_dilated(out: Tensor, predictions: Predictions, share: float) -> None:
    """Adds `share` times the predictions of the dilated views to their cells in `out` (B, C, H, W)."""
    for view, values in predictions:
        view.add_to(out, values, share)


def _add_correction(out: Tensor, x: Tensor, blurred: Tensor, correction: Tensor | float, share: float) -> None:
    """Adds share * correction * (x - blurred) to `out` (B, C, H, W) without allocating another latent."""
    factor = correction if isinstance(correction, Tensor) else out.new_full((), correction)
    factor = factor.to(out.dtype).expand(len(x), 1, 1, 1)
    for first in range(0, len(x), len(blurred)):
        rows = slice(first, first + len(blurred))
        out[rows].addcmul_(x[rows], factor[rows], value=share).addcmul_(blurred, factor[rows], value=-share)
