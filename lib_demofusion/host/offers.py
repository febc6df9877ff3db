"""What users and the webui offer besides what is built in, read anew each time: nothing of it is kept."""

from __future__ import annotations

from modules import shared

from lib_demofusion.host import preset_file
from lib_demofusion.settings.presets import Offers


def known() -> Offers:
    """Returns the user's presets and the webui's upscalers, which are loaded after its scripts."""
    upscalers = host_upscalers()
    return Offers(preset_file.good(upscalers), upscalers)


def host_upscalers() -> tuple[str, ...]:
    """Returns the names of the webui's upscalers."""
    return tuple(upscaler.name for upscaler in shared.sd_upscalers if upscaler.name != "None")
