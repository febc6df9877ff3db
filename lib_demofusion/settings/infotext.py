"""The settings in a picture's infotext, and how they are read back from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lib_demofusion.settings.fields import ENABLED_KEY, SPECS, Settings
from lib_demofusion.settings.presets import BUILT_IN, Offers
from lib_demofusion.settings.reading import changed_fields
from lib_demofusion.settings.spec import SettingsError

CHANGED = " (changed)"
"""Behind a preset's name in an infotext where other values were set than its own."""


def to_infotext(settings: Settings, offers: Offers = BUILT_IN) -> dict[str, str]:
    """Returns infotext keys and values of what differs from the defaults; all are text that the host can parse back.

    The preset says whether its values are still its own.
    """
    pairs = ((spec.infotext, getattr(settings, name), getattr(Settings, name)) for name, spec in SPECS.items())
    text = {key: _infotext_value(value) for key, value, default in pairs if value != default and key != ENABLED_KEY}
    if changed_fields(settings.preset, asdict(settings), offers):
        text[SPECS["preset"].infotext] = settings.preset + CHANGED
    return text


def _infotext_value(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def from_infotext(name: str, params: Mapping[str, object], offers: Offers = BUILT_IN) -> Any:
    """Returns the value of field `name` in a parsed infotext: the default where the text has none or a broken one."""
    spec = SPECS[name]
    if name == "enabled":
        return ENABLED_KEY in params
    try:
        value = params[spec.infotext]
        if name == "preset" and isinstance(value, str):
            value = value.removesuffix(CHANGED)
        return spec.parse(name, value, offers)
    except (KeyError, SettingsError):
        return getattr(Settings, name)
