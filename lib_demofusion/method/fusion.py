"""Fuses a model's predictions on local and dilated views into one for the whole latent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import torch
from torch import Tensor

from lib_demofusion.method.batching import Evaluate, ViewBatches, Work
from lib_demofusion.method.views import DilatedView, LocalView, coverage, taper


def fuse(
    evaluate: Evaluate,
    x: Tensor,
    local: Sequence[LocalView],
    dilated: Sequence[DilatedView],
    c2: float,
    blur: Callable[[Tensor], Tensor],
    correction: Tensor | float,
    batches: ViewBatches | None = None,
    copies: int = 1,
    feather: float = 0.0,
) -> Tensor:
    """Returns (1 - c2) local + c2 dilated prediction for x (B, C, H, W).

    `blur` makes the latent that the dilated views are taken from. `correction` is how much of `x - blur(x)` the
    prediction is owed because it was made on the blurred latent but is applied to x: 1 where `evaluate` returns x0 of
    an eps model, 0 where it returns eps. A path of weight zero is not evaluated.
    `copies` says how many times over x holds the same B / copies images, one set after the other, as it does for cond
    and uncond: one set is blurred for all.
    `feather` is the share of its side along which a local view's weight falls towards each border (see `taper`); the
    weights are divided by their sum, so 0 is the paper's plain mean.
    Beyond x this holds one accumulator, one plane of weights, the blurred latent and the batch of views.
    """
    batches = batches or ViewBatches(1)
    if c2 <= 0 and len(local) == 1 and local[0].take(x).shape == x.shape:
        return next(values for _, values in batches.predictions(evaluate, [(local[0], x)], len(x)))
    blurred = blur(x[: len(x) // copies]) if c2 > 0 else x
    work: list[Work] = [(view, x) for view in local] if c2 < 1 else []
    averaged = len(work)
    work += [(view, blurred) for view in dilated] if c2 > 0 else []
    predictions = batches.predictions(evaluate, work, len(x))
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    if c2 < 1:
        for view, values in islice(predictions, averaged):
            view.add_to(out, _feathered(values, feather))
        weight = coverage(list(local), (x.shape[-2], x.shape[-1]), x.device, feather)
        # a cell in no view stays zero
        out *= (1 - c2) / weight.masked_fill(weight == 0, 1)
    if c2 > 0:
        for view, values in predictions:
            view.add_to(out, values, c2)
        _add_blurred_away(out, x, blurred, correction, c2)
    return out.to(x.dtype)


def _add_blurred_away(out: Tensor, x: Tensor, blurred: Tensor, correction: Tensor | float, c2: float) -> None:
    """Adds c2 correction (x - blurred) to `out` (B, C, H, W); nothing of the latents' size is made on the way."""
    owed = correction if isinstance(correction, Tensor) else out.new_full((), correction)
    owed = owed.to(out.dtype).expand(len(x), 1, 1, 1)
    for first in range(0, len(x), len(blurred)):
        rows = slice(first, first + len(blurred))
        out[rows].addcmul_(x[rows], owed[rows], value=c2).addcmul_(blurred, owed[rows], value=-c2)


def _feathered(values: Tensor, feather: float) -> Tensor:
    """Returns a local view's values (..., h, w) times its weights."""
    if feather <= 0:
        return values
    return values.float() * taper((values.shape[-2], values.shape[-1]), feather, values.device)
