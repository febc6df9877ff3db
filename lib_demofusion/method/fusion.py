"""Fuses a model's predictions on local and dilated views into one for the whole latent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lib_demofusion.method.batching import Evaluate, ViewBatches, Work
from lib_demofusion.method.feathering import Feathering
from lib_demofusion.method.views import DilatedView, LocalView


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
    feathering: Feathering | None = None,
) -> Tensor:
    """Returns (1 - c2) local + c2 dilated prediction for x (B, C, H, W).

    `blur` makes the latent that the dilated views are taken from. `correction` is how much of `x - blur(x)` the
    prediction is owed because it was made on the blurred latent but is applied to x: 1 where `evaluate` returns x0 of
    an eps model, 0 where it returns eps. A path of weight zero is not evaluated.
    `copies` says how many times over x holds the same B / copies images, one set after the other, as it does for cond
    and uncond: one set is blurred for all.
    `feathering` weighs the local views where they overlap; without it their mean is the paper's plain one. It may be
    handed in again for calls with the same views.
    Beyond x this holds one accumulator, one plane of weights, the blurred latent and the batch of views.
    """
    batches, feathering = batches or ViewBatches(1), feathering or Feathering()
    if c2 <= 0 and len(local) == 1 and local[0].take(x).shape == x.shape:
        return next(values for _, values in batches.predictions(evaluate, [(local[0], x)], len(x)))
    blurred = blur(x[: len(x) // copies]) if c2 > 0 else x
    work: list[Work] = [(view, x) for view in local] if c2 < 1 else []
    work += [(view, blurred) for view in dilated] if c2 > 0 else []
    predictions = batches.predictions(evaluate, work, len(x))
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    if c2 < 1:
        for local_view, (_, values) in zip(local, predictions):
            feathering.add(local_view, values, out)
        feathering.divide(out, local, 1 - c2)
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
