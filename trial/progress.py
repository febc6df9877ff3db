"""Progress bars of the commands in trial/ and bench/."""

from __future__ import annotations

import re
import sys
from typing import Any

from tqdm import tqdm

SECONDS = 30
"""Between two lines of a log."""
CURSOR = re.compile(r"[\r\n]|\x1b\[\w")


class _Log:
    """Stands in for standard error where that is no terminal: writes every state as a line, without cursor codes."""

    def __init__(self) -> None:
        self._last = ""

    def write(self, text: str) -> None:
        """Writes a line, unless it is empty or the same as the one before."""
        line = CURSOR.sub("", text).strip()
        if line and line != self._last:
            self._last = line
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        """Hands on what was written."""
        sys.stderr.flush()


def progress_bar(*args: Any, **kwargs: Any) -> Any:
    """Makes a tqdm bar, which writes a line every half a minute where standard error is no terminal."""
    if not sys.stderr.isatty():
        kwargs |= {"file": _Log(), "mininterval": max(kwargs.get("mininterval", 0), SECONDS)}
    return tqdm(*args, **kwargs)
