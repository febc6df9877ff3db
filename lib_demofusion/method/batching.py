"""Chooses how many views the model evaluates in one call.

The host calls the model for the whole latent. This *whole call* is replaced with calls for batches of views. Up to
MOST_VIEWS views, larger batches are faster. If memory runs out, the views are evaluated again in smaller batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from lib_demofusion.method.views import View
from lib_demofusion.out_of_memory import is_out_of_memory

Work = tuple[View, Tensor]
"""A view and the latent that the view is cropped from.

Typically, a whole call has one row per image for cond, and a second row per image for uncond. The latent can have fewer
rows than the whole call (see `fusion.DilatedPath.copies`). In this case, the whole latent is repeated.
"""


class Evaluate(Protocol):
    """Denoises the crops of a batch of views."""

    def __call__(self, crops: Tensor, views: Sequence[View], rows: slice) -> Tensor:
        """Returns the predictions for crops (V * N, C, h, w) of V views with N rows each.

        The N rows of the first view come first. `rows` contains the numbers of these N rows in the whole call. Usually,
        these are all rows of the whole call.
        """
        ...


class Memory(Protocol):
    """Measures and releases the memory of the device. All sizes are in bytes."""

    def free(self) -> int | None:
        """Returns the free memory, or None if the device does not report it."""
        ...

    def begin(self) -> None:
        """Starts a measurement of the largest amount of memory in use."""
        ...

    def peak(self) -> int:
        """Returns the largest amount of memory in use since `begin`, minus the memory in use now.

        The host may have moved the model to the device since `begin` (the webui does this with --medvram). The model
        stays on the device. The subtraction removes the memory of the model, which the next evaluation does not need
        again.
        """
        ...

    def release(self) -> None:
        """Releases the memory that torch caches but does not use."""
        ...


class UnknownMemory:
    """The `Memory` of a device that does not report its memory, such as a CPU."""

    def free(self) -> int | None:
        return None

    def begin(self) -> None:
        """Does nothing."""

    def peak(self) -> int:
        return 0

    def release(self) -> None:
        """Does nothing."""


MOST_VIEWS = 16
"""Maximum number of views per batch in automatic mode. Larger batches are not faster."""

SHARE_OF_FREE = 0.8
"""Share of the free memory that a batch may use in automatic mode.

A batch that needs all of the free memory can fail, because the free memory can consist of many small parts.
"""


def _first_of_one_size(work: Sequence[Work]) -> list[Work]:
    """Returns the entries at the start of `work` whose crops have the same size as the first crop."""
    size = work[0][0].crop_size
    return list(takewhile(lambda entry: entry[0].crop_size == size, work))


class ViewBatches:
    """Chooses the number of views in each model call of one stage.

    `views` is the requested number, or 0 for automatic. In automatic mode, the first batch is a single view. The memory
    that this view needs determines the number of views in the next batches. If a later view is larger than the measured
    view, another batch of a single view is measured. For example, a local view can be larger than a dilated view that
    was measured before.

    If a batch runs out of memory, its views are evaluated again in batches of half the size. If a single view runs out
    of memory, its rows are divided among several calls. After a failure, the number of views never grows again.
    """

    def __init__(self, views: int = 0, memory: Memory | None = None):
        self._memory = memory or UnknownMemory()
        self._measure = self._automatic = views == 0
        self._divides = True
        """Whether the rows of a view may be divided among several calls."""
        self._measured = 0
        """Number of cells of one crop in the latest batch whose memory was measured. 0 before the first measurement."""
        self.views = views or 1
        """Maximum number of views in the next batch."""
        self.rows: int | None = None
        """Maximum number of rows per call, if one view with all its rows does not fit into memory. Otherwise None."""

    def limit_to_one_view(self) -> bool:
        """Limits every model call to exactly one view with all its rows, even if memory runs out.

        Returns whether calls with more than one view were possible before.
        """
        more = self.views > 1 or (self._measure and not isinstance(self._memory, UnknownMemory))
        self.views, self.rows = 1, None
        self._measure = self._automatic = self._divides = False
        return more

    def predictions(self, evaluate: Evaluate, work: Sequence[Work], rows: int) -> Iterator[tuple[View, Tensor]]:
        """Yields each view with its prediction for all rows of the whole call, in the order of `work`.

        `rows` is the number of rows of the whole call. Consecutive views are evaluated in one batch if their crops have
        the same size. A batch can contain both local and dilated views.
        """
        done = 0
        while done < len(work):
            self._measure_again_if_larger(prod(work[done][0].crop_size))
            batch = _first_of_one_size(work[done : done + self.views])
            values = self._try(evaluate, batch, rows)
            if values is None:
                continue
            yield from zip((view for view, _ in batch), values.chunk(len(batch)))
            done += len(batch)

    def _measure_again_if_larger(self, cells: int) -> None:
        """Limits the next batch to one view and measures it, if its first crop is larger than the measured crops.

        `cells` is the number of cells of this crop. Memory is measured again because a batch that is too large does not
        always raise an error. On Windows, the driver can move data to the computer's memory instead, which is slow.
        """
        if self._automatic and cells > self._measured:
            self._measure, self._measured, self.views = True, cells, 1

    def _try(self, evaluate: Evaluate, batch: Sequence[Work], rows: int) -> Tensor | None:
        """Returns the predictions of a batch. Returns None if memory ran out and `_shrink` has reduced the batch size.

        In this case, the caller tries again with fewer views or rows.
        """
        try:
            if self._measure:
                # only if necessary: `begin` also resets the peak of the memory that the webui displays after the job
                self._memory.begin()
            values = self._evaluate(evaluate, batch, rows)
        except Exception as error:
            if not is_out_of_memory(error) or not self._shrink(len(batch), rows):
                raise
        else:
            self._grow()
            return values
        # after the handler, because until then the exception references the tensors of the failed attempt
        self._memory.release()
        return None

    def _evaluate(self, evaluate: Evaluate, batch: Sequence[Work], rows: int) -> Tensor:
        crops = torch.cat([view.take(latent) for view, latent in batch for _ in range(rows // len(latent))])
        views = [view for view, _ in batch]
        if self.rows is None or len(batch) > 1:
            return evaluate(crops, views, slice(0, rows))
        parts = [slice(first, min(first + self.rows, rows)) for first in range(0, rows, self.rows)]
        return torch.cat([evaluate(crops[part], views, part) for part in parts])

    def _shrink(self, views: int, rows: int) -> bool:
        """Halves the number of views per batch, or of rows per call, after `views` views with `rows` rows each failed.

        Returns False if the failed batch cannot be divided.
        """
        self._measure = self._automatic = False
        if views > 1:
            self.views = views // 2
            return True
        if not self._divides:
            return False
        now = min(self.rows or rows, rows)
        self.views, self.rows = 1, now // 2
        return now > 1

    def _grow(self) -> None:
        """After a measured batch of one view, sets the batch size to the largest power of two that fits into memory.

        The batch size affects rounding errors in the image. The free memory differs slightly from run to run. With
        powers of two, runs with slightly different free memory usually have the same batch size.
        """
        if not self._measure:
            return
        self._measure = False
        free, taken = self._memory.free(), self._memory.peak()
        if free is not None and taken > 0:
            fitting = max(1, min(MOST_VIEWS, int(SHARE_OF_FREE * free / taken)))
            self.views = 1 << (fitting.bit_length() - 1)
