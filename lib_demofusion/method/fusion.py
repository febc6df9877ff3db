"""Fuses the predictions of local views and dilated views into one prediction for the whole latent, as in the paper.

`Feathering` applies the weights with which overlapping local views are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lib_demofusion.method.batching import Work
from lib_demofusion.method.views import DilatedView, LocalView, Size, View, taper


class Feathering:
    """Averages the local views of one stage with weights.

    The weights of a view fall linearly towards its borders. `feather` is the length of this ramp, as a fraction of the
    side of the view (see `taper`). With a feather of 0, all cells have the same weight.

    The weights of a view are cached for the whole stage. The sum of the weights of all views is cached until the views
    change. The caches save time on a GPU, where each new small tensor needs a kernel launch.
    """

    def __init__(self, feather: float = 0.0):
        self._feather = feather
        self._tapers: dict[tuple[Size, torch.device], Tensor] = {}
        self._views: list[LocalView] = []
        self._sum: Tensor | None = None

    def add(self, view: LocalView, values: Tensor, out: Tensor) -> None:
        """Adds the `values` (..., h, w) of a view, times the weights of the view, to its cells in `out` (..., H, W)."""
        if self._feather <= 0:
            view.add_to(out, values)
            return
        view.take(out).addcmul_(values.to(out.dtype), self._taper(view.crop_size, out.device))

    def divide(self, out: Tensor, views: Sequence[LocalView], share: float) -> None:
        """Divides `out` (..., H, W) in place by the sum of the weights of all `views`, and multiplies it by `share`.

        Call `add` for all views first. Then `divide` turns `out` into `share` times the weighted mean of the views.
        Cells that no view covers stay zero.
        """
        if self._sum is None or self._sum.device != out.device or self._views != list(views):
            self._views, self._sum = list(views), self._sum_of(views, out)
        out *= share / self._sum

    def _sum_of(self, views: Sequence[LocalView], like: Tensor) -> Tensor:
        """Returns the sum of the weights at each cell of `like` (..., H, W), as (H, W) float32.

        The sum is 1 for cells that no view covers, so that it can be a divisor.
        """
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
"""A function that evaluates the model on views, such as `ViewBatches.predictions` with its first argument bound.

The arguments are the views with their latents (see `Work`), and the number of rows of x in `fuse`. The function yields
each view with the prediction for all rows of this view, in the order of the first argument.
"""


@dataclass(frozen=True)
class LocalPath:
    """The parameter `local` of `fuse`: the local views, and the weights with which their overlaps are averaged."""

    views: Sequence[LocalView]
    feathering: Feathering = field(default_factory=Feathering)
    """Applies the weights. With a feather of 0, overlaps are averaged with equal weights, as in the paper.

    Use the same object for all model calls of a stage, because the object caches the weights.
    """

    def is_all_of(self, x: Tensor) -> bool:
        """Returns whether a single view covers all of x (B, C, H, W)."""
        return len(self.views) == 1 and self.views[0].take(x).shape == x.shape


@dataclass(frozen=True)
class DilatedPath:
    """The parameter `dilated` of `fuse`: the dilated views, which are crops of the blurred latent.

    `blur` is the function that blurs the latent.

    `correction` is a factor: correction * (x - blur(x)) is added to the predictions of the dilated views, because they
    are predictions for the blurred latent. The factor is one number, or a tensor (B, 1, 1, 1) with a number for each
    row. For a model that predicts eps, the factor is 1 if the host's wrapper of the model returns x0, and 0 if the
    wrapper returns eps.

    `copies` is the number of times that the same images follow each other in x (B, C, H, W). For example, it is 2 if x
    contains all images for cond, and then the same images for uncond. Each image is blurred only once.
    """

    views: Sequence[DilatedView]
    blur: Callable[[Tensor], Tensor]
    correction: Tensor | float
    copies: int = 1

    def blurred(self, x: Tensor) -> Tensor:
        """Returns the blurred images (B / copies, C, H, W) of x (B, C, H, W)."""
        return self.blur(x[: len(x) // self.copies])


def fuse(predict: Predict, x: Tensor, local: LocalPath, dilated: DilatedPath, c2: float) -> Tensor:
    """Computes the prediction (1 - c2) local + c2 (dilated + correction (x - blur(x))) for x (B, C, H, W).

    In this formula, local is the weighted mean of the predictions of the local views, and dilated joins the predictions
    of the dilated views. `c2` is the weight of the dilated views. The term with correction is needed because the noise
    is predicted from the blurred latent but subtracted from the sharp latent. Source: arXiv 2311.16973, section 3.4.

    The local views are not evaluated if their weight 1 - c2 is zero, and the dilated views are not evaluated if c2 is
    zero. Besides x, the function needs memory for the result in float32, the weights of the views, the blurred latent,
    and one batch of views.
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
    """Returns the views to evaluate, each with the latent that it is cropped from.

    Local views or dilated views with weight zero are omitted.
    """
    work: list[Work] = [(view, x) for view in local.views] if c2 < 1 else []
    return work + [(view, blurred) for view in dilated.views] if c2 > 0 else work


def _add_local_mean(out: Tensor, predictions: Predictions, local: LocalPath, share: float) -> None:
    """Writes `share` times the weighted mean of the predictions of the local views to `out` (B, C, H, W).

    `out` must be zero before the call. Cells that no view covers stay zero. `predictions` must yield the local views
    first. The dilated views after them are left in the iterator.
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
