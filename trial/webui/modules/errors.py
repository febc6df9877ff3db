"""Stand-in: reports errors after which the webui continues."""

import sys
import traceback


def report(message: str, *, exc_info: bool = False) -> None:
    """Prints a message. If `exc_info` is set, also prints the traceback of the current exception."""
    lines = ["*** " + line for line in message.splitlines()]
    if exc_info:
        lines += ["    " + line for line in traceback.format_exc().splitlines()]
    sys.stderr.write("\n".join(lines) + "\n")
