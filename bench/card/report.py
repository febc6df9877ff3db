"""Collects the rows of the report, and writes it again after every row, so that nothing is lost if a part fails."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib_demofusion.out_of_memory import is_out_of_memory

ROOT = Path(__file__).resolve().parents[2]
HEAD = ("Measured", "Seconds", "Compared with", "Peak memory", "Remarks")


@dataclass(frozen=True)
class Row:
    """The result of one part of the measurement, as text."""

    seconds: str = ""
    compared: str = ""
    peak: str = ""
    remarks: str = ""


@dataclass
class Report:
    """Collects rows within a time limit."""

    title: list[str]
    file: Path
    limit: float
    """Time limit of all parts in seconds."""
    release: Callable[[], None]
    rows: list[tuple[str, Row]] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)
    """Numbers that later parts and the summary need, by name."""
    begun: float = field(default_factory=time.monotonic)

    def attempt(self, name: str, action: Callable[[], Row], estimate: float = 0.0, share: float = 1.0) -> bool:
        """Adds the row that an action returns, or one with its error. Returns whether the action succeeded.

        An action is omitted if it would end after this share of the time limit.
        """
        left = share * self.limit - (time.monotonic() - self.begun)
        if estimate > left:
            needed = f"about {estimate:.0f} s are needed" if estimate >= 1 else "the time is over"
            self._add(name, Row(remarks=f"left out: {needed}; raise --minutes"))
            return False
        try:
            row = action()
        except Exception as error:
            reason = "out of memory" if is_out_of_memory(error) else "failed"
            text = (str(error) or type(error).__name__).splitlines()[0][:120].replace("|", "/")
            row, went_well = Row(remarks=f"{reason}: {text}"), False
        else:
            went_well = True
        self.release()
        self._add(name, row)
        return went_well

    def _add(self, name: str, row: Row) -> None:
        self.rows.append((name, row))
        cells = ", ".join(cell for cell in (row.seconds and f"{row.seconds} s", row.peak, row.remarks) if cell)
        print(f"[{time.monotonic() - self.begun:4.0f} s] {name}: {cells}", file=sys.stderr, flush=True)
        self.file.write_text(self.text(), encoding="utf-8")

    def text(self) -> str:
        """Returns the report as Markdown."""
        lines = [_line(HEAD), "|---" * len(HEAD) + "|"]
        lines += [_line((name, row.seconds, row.compared, row.peak, row.remarks)) for name, row in self.rows]
        return "\n".join([*self.title, "", *lines, "", "Row for docs/cards.md:", "", self.summary(), ""])

    def summary(self) -> str:
        """Returns the row for docs/cards.md. A missing measurement is a dash."""
        keys = ("card", "software", "call", "overhead 2x", "overhead 4x", "waits", "views", "decode", "half")
        return _line([self.found.get(key, "-") for key in keys])


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def gigabytes(size: int) -> str:
    """Formats bytes as in README."""
    return f"{size / 2**30:.2f} GB" if size >= 2**26 else f"{size / 2**20:.1f} MB"


def promised(side: int) -> str:
    """Returns the entry in README's memory table for decoding an image with this side in pixels on the card."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"^\| {side}x{side} \| ([^|]+) \|", text, re.MULTILINE)
    return f"README, in parts: {found[1]}" if found else ""
