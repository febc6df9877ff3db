"""Shows the progress bars of the commands in trial/ and bench/."""

from __future__ import annotations

import re
import sys
from typing import Any

from tqdm import tqdm

SECONDS = 30
"""Seconds between two lines of a log."""
CURSOR = re.compile(r"[\r\n]|\x1b\[\w")


class _Log:
    """Replaces standard error if it is not a terminal: writes every state as a line, without cursor codes."""

    def __init__(self) -> None:
        self._last = ""

    def write(self, text: str) -> None:
        """Writes a line, unless it is empty or equal to the previous one."""
        line = CURSOR.sub("", text).strip()
        if line and line != self._last:
            self._last = line
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        """Flushes standard error."""
        sys.stderr.flush()


def progress_bar(*args: Any, **kwargs: Any) -> Any:
    """Creates a tqdm bar. If standard error is not a terminal, the bar writes a line every half minute."""
    if not sys.stderr.isatty():
        kwargs |= {"file": _Log(), "mininterval": max(kwargs.get("mininterval", 0), SECONDS)}
    return tqdm(*args, **kwargs)
