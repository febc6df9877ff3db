"""Writes the settings to an image's infotext and reads them back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lib_demofusion.settings.errors import SettingsError
from lib_demofusion.settings.fields import ENABLED_KEY, SPECS, Settings
from lib_demofusion.settings.presets import BUILT_IN, Choices
from lib_demofusion.settings.reading import changed_fields

CHANGED = " (changed)"
"""The suffix of a preset's name in an infotext if a value differs from the preset."""


def to_infotext(settings: Settings, choices: Choices = BUILT_IN) -> dict[str, str]:
    """Returns the fields that differ from the defaults, as infotext keys and texts that the host can parse.

    The preset's name gets the suffix CHANGED if a value differs from the preset.
    """
    pairs = ((spec.infotext, getattr(settings, name), getattr(Settings, name)) for name, spec in SPECS.items())
    text = {key: _infotext_value(value) for key, value, default in pairs if value != default and key != ENABLED_KEY}
    if changed_fields(settings.preset, asdict(settings), choices):
        text[SPECS["preset"].infotext] = settings.preset + CHANGED
    return text


def _infotext_value(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def from_infotext(name: str, params: Mapping[str, object], choices: Choices = BUILT_IN) -> Any:
    """Reads field `name` from a parsed infotext. Returns the default if the value is missing or not valid."""
    spec = SPECS[name]
    if name == "enabled":
        return ENABLED_KEY in params
    try:
        value = params[spec.infotext]
        if name == "preset" and isinstance(value, str):
            value = value.removesuffix(CHANGED)
        return spec.parse(name, value, choices)
    except (KeyError, SettingsError):
        return getattr(Settings, name)
