"""What users and the webui offer besides what is built in, read anew each time: nothing of it is kept."""

from __future__ import annotations

from dataclasses import replace

from modules import shared

from lib_demofusion.host.common import preset_file
from lib_demofusion.settings.presets import Offers


def known() -> Offers:
    """Returns the user's presets and the webui's upscalers, which are loaded after its scripts."""
    return known_and_problems()[0]


def known_and_problems() -> tuple[Offers, list[str]]:
    """Returns the same, and what is wrong with the file of presets."""
    upscalers = of_the_webui()
    presets, problems = preset_file.read(upscalers.upscalers)
    return replace(upscalers, presets=presets), problems


def of_the_webui() -> Offers:
    """Returns the webui's upscalers alone, for which no file is read."""
    return Offers(upscalers=tuple(upscaler.name for upscaler in shared.sd_upscalers if upscaler.name != "None"))
