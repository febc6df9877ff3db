"""Stand-in: where the webui reports errors that it goes on after."""

import sys
import traceback
from collections import deque

exception_records: deque = deque(maxlen=20)
"""The latest reports, for the tests."""


def report(message: str, *, exc_info: bool = False) -> None:
    """Prints a message, with the traceback of the exception being handled where `exc_info` is set."""
    exception_records.append(message)
    lines = ["*** " + line for line in message.splitlines()]
    if exc_info:
        lines += ["    " + line for line in traceback.format_exc().splitlines()]
    sys.stderr.write("\n".join(lines) + "\n")
