"""Reads the user's presets and the webui's upscalers. Nothing is cached."""

from __future__ import annotations

from dataclasses import replace

from modules import shared

from lib_demofusion.host.common import preset_file
from lib_demofusion.settings.presets import Offers


def known() -> Offers:
    """Returns the user's presets and the webui's upscalers. The webui loads upscalers after its scripts."""
    return known_and_problems()[0]


def known_and_problems() -> tuple[Offers, list[str]]:
    """Returns the presets and upscalers, and the errors in the file of presets."""
    upscalers = of_the_webui()
    presets, problems = preset_file.read(upscalers.upscalers)
    return replace(upscalers, presets=presets), problems


def of_the_webui() -> Offers:
    """Returns only the webui's upscalers, without reading a file."""
    return Offers(upscalers=tuple(upscaler.name for upscaler in shared.sd_upscalers if upscaler.name != "None"))
