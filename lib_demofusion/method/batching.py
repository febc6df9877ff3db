"""How many views the model is given at once: more are faster, and when memory runs out fewer will do."""

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
"""A view, and the latent that it is taken from; where that has fewer rows than the model is given, they repeat."""


class Evaluate(Protocol):
    """Denoises the crops of views."""

    def __call__(self, crops: Tensor, views: Sequence[View], rows: slice) -> Tensor:
        """Returns the predictions for crops (V * N, C, h, w), all N rows of the first view first.

        `rows` says which of the latent's rows (images, times conds and unconds) the crops are of.
        """
        ...


class Memory(Protocol):
    """What the device tells of its memory, in bytes."""

    def free(self) -> int | None:
        """Returns what can still be taken, or None where the device does not tell."""
        ...

    def begin(self) -> None:
        """Begins to watch what is taken."""
        ...

    def peak(self) -> int:
        """Returns the most that was in use since `begin`, beyond what is in use now.

        A host may move the model to the device when it is called (the webui with --medvram). That stays there: it is
        no part of what an evaluation takes.
        """
        ...

    def release(self) -> None:
        """Gives back what is cached."""
        ...


class UnknownMemory:
    """Memory of a device that tells nothing, as a CPU."""

    def free(self) -> int | None:
        return None

    def begin(self) -> None:
        """Nothing to watch."""

    def peak(self) -> int:
        return 0

    def release(self) -> None:
        """Nothing is cached."""


MOST_VIEWS = 16
"""The automatic batch ends here: beyond it no model gains."""

SHARE_OF_FREE = 0.8
"""What the automatic batch takes of the free memory; fragmentation needs the rest."""


def _of_one_size(work: Sequence[Work]) -> list[Work]:
    """Returns the first of the work up to where the size of the crops changes."""
    size = work[0][0].crop_size
    return list(takewhile(lambda entry: entry[0].crop_size == size, work))


class ViewBatches:
    """The size of view batches during one stage.

    `views` is the number asked for, 0 for automatic: the first batch is one view, and what it took of the free memory
    decides; so does the first of a larger size (dilated views may be smaller than local ones). A batch that runs out of
    memory is evaluated again at half the size, down to one view and then to one row of it; the smaller size is kept.
    """

    def __init__(self, views: int = 0, memory: Memory | None = None):
        self._memory = memory or UnknownMemory()
        self._measure = self._automatic = views == 0
        self._measured = 0
        """Cells of a crop of the batch that decided."""
        self.views = views or 1
        self.rows: int | None = None
        """Rows evaluated at once when not even one view with all its rows fits, else None."""

    def predictions(self, evaluate: Evaluate, work: Sequence[Work], rows: int) -> Iterator[tuple[View, Tensor]]:
        """Yields each view with its prediction for all `rows` rows, in the order of `work`.

        Views that follow one another in `work` and whose crops have one size share a batch, whatever kind they are.
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
        """Begins anew with one view where the crops are larger than those that decided the size of a batch.

        A batch too large need not fail: Windows moves what does not fit into the computer's memory, and all is slow.
        """
        if self._automatic and cells > self._measured:
            self._measure, self._measured, self.views = True, cells, 1

    def _try(self, evaluate: Evaluate, batch: Sequence[Work], rows: int) -> Tensor | None:
        """Returns the predictions of a batch, or None when it must be tried again at the smaller size now set."""
        try:
            if self._measure:
                # not for every batch: it resets the peak that the host shows as the job's own
                self._memory.begin()
            values = self._evaluate(evaluate, batch, rows)
        except Exception as error:
            if not is_out_of_memory(error) or not self._shrink(len(batch), rows):
                raise
        else:
            self._grow()
            return values
        # here, behind the handler, nothing holds the tensors of the failed attempt any more
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
        """Halves the batch; returns whether that was possible."""
        self._measure = self._automatic = False
        if views > 1:
            self.views = views // 2
            return True
        now = min(self.rows or rows, rows)
        self.views, self.rows = 1, now // 2
        return now > 1

    def _grow(self) -> None:
        """After the first batch of one view, takes as many as the free memory holds, in powers of two.

        The size of a batch shows in the last bits of an image; a coarse scale keeps it the same from run to run.
        """
        if not self._measure:
            return
        self._measure = False
        free, taken = self._memory.free(), self._memory.peak()
        if free is not None and taken > 0:
            fitting = max(1, min(MOST_VIEWS, int(SHARE_OF_FREE * free / taken)))
            self.views = 1 << (fitting.bit_length() - 1)
