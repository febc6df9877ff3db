"""Computes the weights of local views in their overlaps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lib_demofusion.method.views import LocalView, Size, taper


class Feathering:
    """The weights of the local views of one stage.

    `feather` is the fraction of a view's side over which its weight falls towards each border (see `taper`). With 0,
    all cells have the same weight. The weights of a view are cached for the stage, and their sum is cached until the
    views change. This matters on a GPU, where each new small tensor costs a kernel launch.
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
        """Divides the sums over `views` in `out` (..., H, W) by their weights and multiplies by `share`, in place.

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
