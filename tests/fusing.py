"""Calls `fusion.fuse` with separate arguments instead of a LocalPath and a DilatedPath.

By default, the model evaluates one view per call. c2 is the weight of the dilated views, from 0 to 1. The tiles have
the weight 1 - c2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from lib_demofusion.method import fusion
from lib_demofusion.method.batching import Evaluate, ViewBatches
from lib_demofusion.method.fusion import Feathering
from lib_demofusion.method.plan import StagePlan
from lib_demofusion.method.views import DilatedView, LocalView


def evaluations(stage: StagePlan, c2: float = 0.5) -> int:
    """Returns the number of views that the model evaluates in one call of `fuse`, for this c2."""
    return (stage.local_count if c2 < 1 else 0) + (stage.dilated_count if c2 > 0 else 0)


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
    """Returns the result of `fusion.fuse` for x (B, C, h, w), with both paths created from the other arguments."""
    predict = partial((batches or ViewBatches(1)).predictions, evaluate)
    paths = fusion.LocalPath(local, feathering or Feathering()), fusion.DilatedPath(dilated, blur, correction, copies)
    return fusion.fuse(predict, x, *paths, c2)
