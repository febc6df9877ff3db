"""Hides the differences between webuis behind the interface `Backend`.

`host()` returns the implementation for the running webui.
"""

from __future__ import annotations

import functools
import logging
import sys
from importlib.util import find_spec
from typing import Any

from lib_demofusion.host.backends.families import Family
from lib_demofusion.host.backends.interface import Backend

FORGE_PACKAGE = "modules_forge"
"""A package that exists in every webui of Forge's family and in no other webui."""

UNKNOWN = "DemoFusion Hires is not tested in this webui (%s). If a run fails, see the README"

logger = logging.getLogger("DemoFusion")


@functools.lru_cache(maxsize=1)
def host() -> Backend:
    """Returns the backend for the running webui."""
    if find_spec(FORGE_PACKAGE) is None:
        from lib_demofusion.host.backends.webui import Webui

        return Webui()
    from lib_demofusion.host.backends.forge import Forge

    return Forge()


def loaded_model() -> Any:
    """Returns the loaded model, or None if the webui has not loaded the selected checkpoint yet.

    If no model is loaded, the result is None or the webui's placeholder (see `Backend.family`). This function does not
    read `shared.sd_model`, because that would load a checkpoint.
    """
    from modules import sd_models

    return None if host().is_pending() else getattr(sd_models.model_data, "sd_model", None)


def selected_family() -> Family:
    """Returns the family of the checkpoint that the next job uses, even if the webui has not loaded it yet.

    Returns Stable Diffusion if there is no such checkpoint, or if it is not loaded and its file is not recognized.
    """
    return host().pending_family() or host().family(loaded_model())


def greet() -> None:
    """Logs a warning if the backend does not know how the running webui calls its model."""
    if not host().is_known():
        logger.warning(UNKNOWN, version())


def version() -> str:
    """Returns the version that the webui reports, or "of unknown version"."""
    launch = sys.modules.get("modules.launch_utils")
    tag = getattr(launch, "git_tag", None)
    return str(tag()) if tag is not None else "of unknown version"
