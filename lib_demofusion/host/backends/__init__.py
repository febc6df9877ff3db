"""What differs between webuis, behind one interface. Everything above asks `host()` and knows none of them."""

from __future__ import annotations

import functools
import logging
from importlib.util import find_spec

from lib_demofusion.host.backends.interface import Backend

FORGE_PACKAGE = "modules_forge"
"""The package that every webui of Forge's family has and no other."""

UNKNOWN = (
    "this webui is not one that DemoFusion Hires was tried in (see its README); runs that it cannot make fail by name"
)

logger = logging.getLogger("DemoFusion")


@functools.lru_cache(maxsize=1)
def host() -> Backend:
    """Returns the backend of the webui that this runs in."""
    if find_spec(FORGE_PACKAGE) is None:
        from lib_demofusion.host.backends.webui import Webui

        return Webui()
    from lib_demofusion.host.backends.forge import Forge

    return Forge()


def greet() -> None:
    """Names a webui that nothing is known of, in one line."""
    if not host().is_known():
        logger.warning("%s", UNKNOWN)
