"""Chooses how many views the model evaluates in one call.

Larger batches are faster. If memory runs out, the number of views is reduced.
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
"""A view and the latent that it is cropped from. If the latent has fewer rows than the model call, its rows repeat."""


class Evaluate(Protocol):
    """Denoises the crops of a batch of views."""

    def __call__(self, crops: Tensor, views: Sequence[View], rows: slice) -> Tensor:
        """Returns the predictions for crops (V * N, C, h, w). The N rows of the first view come first.

        `rows` selects the rows of the latent that the crops come from. The latent of a model call has one row per image
        for cond, and usually one row per image for uncond.
        """
        ...


class Memory(Protocol):
    """Reads the memory of the device, in bytes."""

    def free(self) -> int | None:
        """Returns the free memory, or None if the device does not report it."""
        ...

    def begin(self) -> None:
        """Starts to measure the peak."""
        ...

    def peak(self) -> int:
        """Returns the peak since `begin`, minus the memory in use now.

        The memory in use now can include a model that the host moved to the device in this call (the webui does this
        with --medvram). The model stays there, so it is not memory that the next evaluation needs in addition.
        """
        ...

    def release(self) -> None:
        """Releases cached memory."""
        ...


class UnknownMemory:
    """Memory of a device that does not report it, such as a CPU."""

    def free(self) -> int | None:
        return None

    def begin(self) -> None:
        """Does nothing."""

    def peak(self) -> int:
        return 0

    def release(self) -> None:
        """Does nothing."""


MOST_VIEWS = 16
"""Upper limit of the automatic batch. Larger batches are not faster."""

SHARE_OF_FREE = 0.8
"""Share of the free memory that the automatic batch uses. The rest remains free because memory can be fragmented."""


def _of_one_size(work: Sequence[Work]) -> list[Work]:
    """Returns the first entries of `work`, up to the first one whose crop has another size."""
    size = work[0][0].crop_size
    return list(takewhile(lambda entry: entry[0].crop_size == size, work))


class ViewBatches:
    """Chooses the number of views in each model call of one stage.

    `views` is the requested number, or 0 for automatic. In automatic mode, the first batch is a single view, and its
    memory determines the size of the next batches. This is repeated at the first batch with larger crops, because
    dilated views can be smaller than local views. If a batch runs out of memory, it is evaluated again with half as
    many views. If a single view runs out of memory, its rows are divided too. The smaller size is kept.
    """

    def __init__(self, views: int = 0, memory: Memory | None = None):
        self._memory = memory or UnknownMemory()
        self._measure = self._automatic = views == 0
        self._divides = True
        """Whether a view may be evaluated in parts of its rows."""
        self._measured = 0
        """Number of cells per crop in the batch that determined the batch size."""
        self.views = views or 1
        self.rows: int | None = None
        """Number of rows per call if even one view with all its rows does not fit, else None."""

    def hold_to_one(self) -> bool:
        """Limits batches to one view with all its rows. Returns whether batches could have been larger before."""
        more = self.views > 1 or (self._measure and not isinstance(self._memory, UnknownMemory))
        self.views, self.rows = 1, None
        self._measure = self._automatic = self._divides = False
        return more

    def predictions(self, evaluate: Evaluate, work: Sequence[Work], rows: int) -> Iterator[tuple[View, Tensor]]:
        """Yields each view with its prediction for all `rows` rows, in the order of `work`.

        Consecutive views share a batch if their crops have the same size, whether they are local or dilated.
        """
        done = 0
        while done < len(work):
            self._measure_larger(prod(work[done][0].crop_size))
            batch = _of_one_size(work[done : done + self.views])
            values = self._try(evaluate, batch, rows)
            if values is None:
                continue
            yield from zip((view for view, _ in batch), values.chunk(len(batch)))
            done += len(batch)

    def _measure_larger(self, cells: int) -> None:
        """Returns to batches of one view if the crops are larger than the crops that determined the batch size.

        A batch that is too large does not always raise an error. Windows moves data to the computer's memory instead,
        which is slow.
        """
        if self._automatic and cells > self._measured:
            self._measure, self._measured, self.views = True, cells, 1

    def _try(self, evaluate: Evaluate, batch: Sequence[Work], rows: int) -> Tensor | None:
        """Returns the predictions of a batch, or None if memory ran out. The caller then divides the batch."""
        try:
            if self._measure:
                # other batches are not measured, because this resets the peak that the webui displays for the job
                self._memory.begin()
            values = self._evaluate(evaluate, batch, rows)
        except Exception as error:
            if not is_out_of_memory(error) or not self._shrink(len(batch), rows):
                raise
        else:
            self._grow()
            return values
        # the exception references the tensors of the failed attempt, so memory is released after its handler
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
        """Halves the batch size. Returns False if the batch cannot be divided."""
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

        The batch size affects the last bits of an image. Two runs more often have the same batch size if it is limited
        to powers of two.
        """
        if not self._measure:
            return
        self._measure = False
        free, taken = self._memory.free(), self._memory.peak()
        if free is not None and taken > 0:
            fitting = max(1, min(MOST_VIEWS, int(SHARE_OF_FREE * free / taken)))
            self.views = 1 << (fitting.bit_length() - 1)
