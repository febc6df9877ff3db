"""The most memory that this process had at once, as Linux counts it: everything, not tensors alone."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""glibc's names (malloc.h) for how much freed memory is kept, and for the size above which none is kept at all."""


@contextmanager
def given_back_when_freed() -> Iterator[None]:
    """Makes glibc return at once what is freed, so that the process has what it uses; allocating takes longer so."""
    libc = ctypes.CDLL(None)
    libc.malloc_trim(0)
    libc.mallopt(MMAP_THRESHOLD, 1 << 16)
    try:
        yield
    finally:
        # what glibc itself comes to after a while
        libc.mallopt(MMAP_THRESHOLD, 1 << 25)
        libc.mallopt(TRIM_THRESHOLD, 1 << 26)


class Resident:
    """Counts the bytes beyond those that the process had at `begin`; `limit` of them count as free, None as unknown.

    In this form the automatic view batch can be told of a limit on a CPU too.
    """

    def __init__(self, limit: int | None = None):
        self._limit = limit
        self._before = self._made = 0
        if limit is not None:
            self._made = _status("VmRSS")

    def free(self) -> int | None:
        """Returns what is left of the limit."""
        return None if self._limit is None else max(0, self._limit - (_status("VmRSS") - self._made))

    def begin(self) -> None:
        """Begins to watch the peak."""
        Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: the peak starts anew
        self._before = _status("VmRSS")

    def peak(self) -> int:
        """Returns the most bytes at once since `begin`."""
        return _status("VmHWM") - self._before

    def release(self) -> None:
        """Nothing is cached."""


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
