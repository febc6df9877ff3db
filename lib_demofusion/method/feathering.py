"""How the local views of a stage are weighed where they overlap."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lib_demofusion.method.views import LocalView, Size, taper


class Feathering:
    """The weights of local views; one lives for one stage.

    `feather` is the share of its side along which a view's weight falls towards each border (see `taper`), 0 weighs all
    its cells the same. What does not change is made once: a view's own weights for the stage, and their sum until the
    views are others. On a card each small tensor made anew is a kernel to start, for every view and call.
    """

    def __init__(self, feather: float = 0.0):
        self._feather = feather
        self._tapers: dict[tuple[Size, torch.device], Tensor] = {}
        self._views: list[LocalView] = []
        self._sum: Tensor | None = None

    def add(self, view: LocalView, values: Tensor, out: Tensor) -> None:
        """Adds a view's weighed `values` (..., h, w) to its cells of `out` (..., H, W)."""
        if self._feather <= 0:
            view.add_to(out, values)
            return
        view.take(out).addcmul_(values.to(out.dtype), self._taper(view.crop_size, out.device))

    def divide(self, out: Tensor, views: Sequence[LocalView], share: float) -> None:
        """Makes of the sums over `views` in `out` (..., H, W) their weighed mean times `share`, in place.

        A cell in no view stays zero.
        """
        if self._sum is None or self._sum.device != out.device or self._views != list(views):
            self._views, self._sum = list(views), self._sum_of(views, out)
        out *= share / self._sum

    def _sum_of(self, views: Sequence[LocalView], like: Tensor) -> Tensor:
        """Returns the sum of the views' weights at each cell, (H, W) float32, and 1 where there is none."""
        total = torch.zeros(like.shape[-2:], dtype=torch.float32, device=like.device)
        for view in views:
            view.add_to(total, self._taper(view.crop_size, total.device))
        return total.masked_fill_(total == 0, 1)

    def _taper(self, size: Size, device: torch.device) -> Tensor:
        """Returns the weights (h, w) of a view of that size."""
        if (size, device) not in self._tapers:
            self._tapers[size, device] = taper(size, self._feather, device)
        return self._tapers[size, device]
