"""What differs between webuis, behind one interface. Everything above asks `host()` and knows none of them."""

from __future__ import annotations

import functools
import logging
import sys
from importlib.util import find_spec
from typing import Any

from lib_demofusion.host.backends.interface import Backend

FORGE_PACKAGE = "modules_forge"
"""The package that every webui of Forge's family has and no other."""

UNKNOWN = "DemoFusion Hires was not tried in this webui (%s); a run that it cannot make will say so, see the README"

logger = logging.getLogger("DemoFusion")


@functools.lru_cache(maxsize=1)
def host() -> Backend:
    """Returns the backend of the webui that this runs in."""
    if find_spec(FORGE_PACKAGE) is None:
        from lib_demofusion.host.backends.webui import Webui

        return Webui()
    from lib_demofusion.host.backends.forge import Forge

    return Forge()


def loaded_model() -> Any:
    """Returns the checkpoint in memory, or None if there is none or another one is chosen.

    `shared.sd_model` would load one.
    """
    from modules import sd_models

    return None if host().is_pending() else getattr(sd_models.model_data, "sd_model", None)


def greet() -> None:
    """Names a webui that nothing is known of, in one line."""
    if not host().is_known():
        logger.warning(UNKNOWN, version())


def version() -> str:
    """Returns what the webui calls its version."""
    launch = sys.modules.get("modules.launch_utils")
    tag = getattr(launch, "git_tag", None)
    return str(tag()) if tag is not None else "of unknown version"
