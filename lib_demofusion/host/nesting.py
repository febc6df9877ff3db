"""Finds the outer requests of a request. Other extensions run img2img on an image during its own request."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

PROCESSING = "modules.processing"
"""The module whose functions run a request, with the request as their local variable `p`."""


def outer_requests(p: Any) -> Iterator[Any]:
    """Yields the requests other than p that the webui is processing, the innermost first.

    Reads them from the call stack. An attribute would remain after a request that raised an error, and copies of the
    request would have it too.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        found = frame.f_locals.get("p") if frame.f_globals.get("__name__") == PROCESSING else None
        if found is not None and found is not p:
            yield found
        frame = frame.f_back
