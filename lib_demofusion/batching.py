"""How many views the model is given at once: more are faster, and when memory runs out fewer will do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lib_demofusion.views import View


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
        """Returns the most that was taken beyond what was in use at `begin`."""
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


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether an error says that the device's memory is used up; not every backend has a class for it."""
    words = ("out of memory", "not enough memory")
    known = isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError))
    return known or any(word in str(error).lower() for word in words)


class ViewBatches:
    """The size of view batches during one stage.

    `views` is the number asked for, 0 for automatic: the first batch is one view, and what it took of the free memory
    decides. A batch that runs out of memory is evaluated again at half the size, down to one view and then to one row
    of it, and the smaller size is kept.
    """

    def __init__(self, views: int = 0, memory: Memory | None = None):
        self._memory = memory or UnknownMemory()
        self._measure = views == 0
        self.views = views or 1
        self.rows: int | None = None
        """Rows evaluated at once when not even one view with all its rows fits, else None."""

    def predictions(self, evaluate: Evaluate, x: Tensor, views: Sequence[View]) -> Iterator[tuple[View, Tensor]]:
        """Yields each view with its prediction for x (N, C, H, W)."""
        done = 0
        while done < len(views):
            batch = views[done : done + self.views]
            values = self._try(evaluate, x, batch)
            if values is None:
                continue
            yield from zip(batch, values.chunk(len(batch)))
            done += len(batch)

    def _try(self, evaluate: Evaluate, x: Tensor, batch: Sequence[View]) -> Tensor | None:
        """Returns the predictions of a batch, or None when it must be tried again at the smaller size now set."""
        try:
            self._memory.begin()
            values = self._evaluate(evaluate, x, batch)
        except Exception as error:
            if not is_out_of_memory(error) or not self._shrink(len(batch), len(x)):
                raise
        else:
            self._grow()
            return values
        # here, behind the handler, nothing holds the tensors of the failed attempt any more
        self._memory.release()
        return None

    def _evaluate(self, evaluate: Evaluate, x: Tensor, batch: Sequence[View]) -> Tensor:
        crops = torch.cat([view.take(x) for view in batch])
        count = len(x)
        if self.rows is None or len(batch) > 1:
            return evaluate(crops, batch, slice(0, count))
        parts = [slice(first, min(first + self.rows, count)) for first in range(0, count, self.rows)]
        return torch.cat([evaluate(crops[part], batch, part) for part in parts])

    def _shrink(self, views: int, rows: int) -> bool:
        """Halves the batch; returns whether that was possible."""
        self._measure = False
        if views > 1:
            self.views = views // 2
            return True
        now = min(self.rows or rows, rows)
        self.views, self.rows = 1, now // 2
        return now > 1

    def _grow(self) -> None:
        """After the first batch of one view, takes as many as the free memory holds, in powers of two.

        The size of a batch shows in the last bits of a picture; a coarse scale keeps it the same from run to run.
        """
        if not self._measure:
            return
        self._measure = False
        free, taken = self._memory.free(), self._memory.peak()
        if free is not None and taken > 0:
            fitting = max(1, min(MOST_VIEWS, int(SHARE_OF_FREE * free / taken)))
            self.views = 1 << (fitting.bit_length() - 1)
