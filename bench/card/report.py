"""Measures actions (functions without arguments) on a GPU or a CPU, and collects the results in a report."""

from __future__ import annotations

import gc
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from bench.peak_bytes import PeakBytes
from lib_demofusion.out_of_memory import is_out_of_memory

HEAD = ("Measured", "Seconds", "Peak memory", "Remarks")
Cells = tuple[str, str, str]
"""The last three cells of a row of the report: the seconds, the peak memory and the remarks."""
QUICK = 1.0
"""On a GPU, an action of fewer seconds than this is measured three times. The fastest run counts."""
Measured = tuple[float, int, int | None]
"""Seconds, bytes of memory, and number of waits for the GPU (see `Card.measure`)."""


class Card:
    """A GPU, or the CPU. `kind` is torch's name for the type of the device: "cuda", "xpu", "mps" or "cpu"."""

    def __init__(self, kind: str) -> None:
        self.device, self._torch = torch.device(kind), getattr(torch, kind)
        # on a CPU, half precision is many times slower than single precision
        self.half = torch.float32 if kind == "cpu" else torch.float16
        self.name: str = getattr(self._torch, "get_device_name", platform.machine)()
        self.memory = torch.cuda.mem_get_info()[1] if kind == "cuda" else 0
        """Total memory in bytes, or 0 if unknown."""

    def release(self) -> None:
        """Frees the memory of objects that are no longer used."""
        gc.collect()
        getattr(self._torch, "empty_cache", lambda: None)()

    def measure(self, action: Callable[[], object], count_memory: bool = True) -> Measured:
        """Returns the duration of an action in seconds, its memory in bytes, and how often the CPU waited for the GPU.

        The memory is the maximum in use during the action, minus the memory in use before it. The number of waits is
        None if torch does not report them. Without `count_memory`, the memory is 0, except with CUDA.
        """
        found = [self._once(action, count_memory)]
        while len(found) < 3 and found[0][0] < QUICK and self.device.type != "cpu":
            found.append(self._once(action, count_memory))
        return min(found)

    def _once(self, action: Callable[[], object], count_memory: bool) -> Measured:
        """Measures an action once. Without CUDA, counting the memory needs a run of its own before the timed run."""
        if self.device.type != "cuda":
            with PeakBytes() as counted:
                if count_memory:
                    action()
            return self._seconds(action), counted.peak, None
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", "called a synchronizing")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                seconds = self._seconds(action)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return seconds, torch.cuda.max_memory_allocated() - before, len(waits)

    def _seconds(self, action: Callable[[], object]) -> float:
        self._torch.synchronize()
        begin = time.perf_counter()
        action()
        self._torch.synchronize()
        return time.perf_counter() - begin


class Report:
    """A table of results, and one line with the most important results for docs/cards.md.

    Each new row rewrites the file. `limit` is the time limit of all measurements in seconds. `short` lists the names of
    the rows whose results are in the line for docs/cards.md. `release` frees memory after each measurement.
    """

    def __init__(self, title: str, short: Sequence[str], file: Path, limit: float, release: Callable[[], None]) -> None:
        self._title, self._short, self._file, self._release = title, short, file, release
        self._limit, self._begun = limit, time.monotonic()
        self._rows: dict[str, Cells] = {}

    def attempt(self, name: str, action: Callable[[], Cells], estimate: float = 0.0) -> None:
        """Runs an action, and adds a row with the cells that the action returns or with the error that it raises.

        `estimate` is the expected duration in seconds. If it is more than half of the remaining time, the action does
        not run, and the row says so.
        """
        if estimate > max(self._begun + self._limit - time.monotonic(), 0) / 2:
            cells = ("", "", f"left out: needs about {estimate:.0f} s; use a larger --minutes")
        else:
            try:
                cells = action()
            except Exception as error:
                reason = "out of memory" if is_out_of_memory(error) else "failed"
                cells = ("", "", f"{reason}: {(str(error) or type(error).__name__).splitlines()[0][:120]}")
        self._release()
        self._rows[name] = cells
        print(f"[{time.monotonic() - self._begun:4.0f} s] {name}: {', '.join(filter(None, cells))}", file=sys.stderr)
        self._file.write_text(self.text(), encoding="utf-8")

    def text(self) -> str:
        """Returns the report as Markdown. The last line of the report is a row for the table in docs/cards.md."""
        cells = [", ".join(filter(None, self._rows.get(name, ("-",)))) for name in self._short]
        lines = table(HEAD, [(name, *row) for name, row in self._rows.items()])
        return "\n".join([self._title, "", *lines, "", "Row for docs/cards.md:", "", _line([self._title, *cells]), ""])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns the lines of a Markdown table."""
    return [_line(head), "|---" * len(head) + "|", *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def gigabytes(size: int) -> str:
    """Formats a number of bytes in GB, or in MB below 64 MB. One GB is 2**30 bytes, as in README."""
    return f"{size / 2**30:.2f} GB" if size >= 2**26 else f"{size / 2**20:.1f} MB"
