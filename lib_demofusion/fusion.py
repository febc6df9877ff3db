"""Fuses a model's predictions on local and dilated views into one for the whole latent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lib_demofusion.views import DilatedView, LocalView, View, coverage

Evaluate = Callable[[Tensor, Sequence[View]], Tensor]
"""Denoises the views' crops (V * B, C, h, w), all B images of the first view first, and returns the same shape."""


def fuse(
    evaluate: Evaluate,
    x: Tensor,
    local: Sequence[LocalView],
    dilated: Sequence[DilatedView],
    c2: float,
    blur: Callable[[Tensor], Tensor],
    correction: Tensor | float,
    view_batch: int = 1,
) -> Tensor:
    """Returns (1 - c2) local + c2 dilated prediction for x (B, C, H, W).

    `blur` makes the latent that the dilated views are taken from. `correction` is how much of `x - blur(x)` the
    prediction is owed because it was made on the blurred latent but is applied to x: 1 where `evaluate` returns x0 of
    an eps model, 0 where it returns eps. A path of weight zero is not evaluated.
    """
    if c2 <= 0 and len(local) == 1 and local[0].take(x).shape == x.shape:
        return evaluate(x, local)
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    if c2 < 1:
        for view, values in _predictions(evaluate, x, local, view_batch):
            view.add_to(out, values.float())
        weight = coverage(list(local), (x.shape[-2], x.shape[-1]), x.device)
        out *= (1 - c2) / weight.clamp_min(1)
    if c2 > 0:
        blurred = blur(x)
        for view, values in _predictions(evaluate, blurred, dilated, view_batch):
            view.add_to(out, values.float() * c2)
        out += (x - blurred) * (correction * c2)
    return out.to(x.dtype)


def _predictions(
    evaluate: Evaluate, x: Tensor, views: Sequence[View], view_batch: int
) -> Iterator[tuple[View, Tensor]]:
    """Yields each view with its prediction (B, C, h, w)."""
    for first in range(0, len(views), view_batch):
        batch = views[first : first + view_batch]
        values = evaluate(torch.cat([view.take(x) for view in batch]), batch)
        yield from zip(batch, values.chunk(len(batch)))
