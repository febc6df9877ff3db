"""Reads settings from script arguments, presets and infotexts, and writes settings to infotexts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from lib_demofusion.settings.errors import SettingsError, shortened
from lib_demofusion.settings.fields import CONTROLLED, ENABLED_KEY, NAMES, PRESET_FIELDS, SPECS, Settings
from lib_demofusion.settings.presets import BUILT_IN, MOST_STRENGTH, Choices, automatic_preset, looks_few_step

CHANGED = " (changed)"
"""A suffix of the preset's name in an infotext. It means that at least one field has another value than the preset."""


def preset_values(preset: str, choices: Choices = BUILT_IN) -> dict[str, Any]:
    """Returns the values of all PRESET_FIELDS with this preset, by field."""
    return {**{name: getattr(Settings, name) for name in PRESET_FIELDS}, **choices.differing(preset)}


def changed_fields(preset: str, values: Mapping[str, object], choices: Choices = BUILT_IN) -> tuple[str, ...]:
    """Returns the names of the PRESET_FIELDS in `values` whose value differs from the preset.

    A value that is not valid counts as different.
    """

    def as_read(name: str) -> object:
        try:
            return SPECS[name].parse(name, values[name], choices)
        except SettingsError:
            return None

    given = preset_values(preset, choices)
    return tuple(name for name in PRESET_FIELDS if name in values and as_read(name) != given[name])


def parse_preset(values: Mapping[str, object], choices: Choices = BUILT_IN) -> dict[str, Any]:
    """Returns a preset's values, converted to the types of their fields.

    Raises SettingsError for a field outside PRESET_FIELDS and for a value that is not valid.
    """
    for name in values:
        if name not in PRESET_FIELDS:
            raise _unknown(name, values[name], PRESET_FIELDS)
    return {name: SPECS[name].parse(name, value, choices) for name, value in values.items()}


def parse_settings(
    values: Mapping[str, object], preset: str = Settings.preset, choices: Choices = BUILT_IN
) -> Settings:
    """Converts `values` to Settings. A field that is missing or None gets the value of the preset.

    If `values` contains no preset, the argument `preset` is used. Raises SettingsError for the first unknown field, or
    if all fields are known, for the first value that is not valid.
    """
    _check_names(values)
    parsed = {name: SPECS[name].parse(name, value, choices) for name, value in values.items() if value is not None}
    parsed.setdefault("preset", preset)
    return Settings(**{**choices.differing(parsed["preset"]), **parsed})


def _check_names(values: Mapping[str, object]) -> None:
    for name in values:
        if name not in SPECS:
            raise _unknown(name, values[name], NAMES)


def _unknown(name: object, value: object, known: Sequence[str]) -> SettingsError:
    """Creates the error for an unknown field. `known` are the allowed names. `name` and `value` can have any type."""
    problem = f"the field {shortened(name)} does not exist (its value is {shortened(value)})"
    return SettingsError(str(name), value, "the fields " + ", ".join(known), problem)


def names_preset(args: Sequence[object]) -> bool:
    """Returns whether a script's arguments contain a preset."""
    return _by_name(args).get("preset") is not None


def fields_without_switch(args: Sequence[object]) -> tuple[str, ...]:
    """Returns the names of the fields that a script's arguments set, or an empty tuple if they set `enabled`."""
    given = tuple(str(name) for name, value in _by_name(args).items() if value is not None)
    return () if "enabled" in given else given


def _by_name(args: Sequence[object]) -> Mapping[str, object]:
    """Returns a script's arguments by field. The arguments are values in the order of the fields, or one dict.

    If an API request contains both an infotext and a dict, the first argument is the dict, and the other arguments are
    values from the infotext. Fields that the dict does not set get the values from the infotext. If the dict contains a
    preset, this applies only to fields that no preset sets.
    """
    if not args or not isinstance(args[0], Mapping):
        return dict(zip(NAMES, args))
    given = args[0]
    others = {name: value for name, value in zip(NAMES[1:], args[1:]) if value is not None}
    # if the infotext sets all controls, the image was created with DemoFusion, so the infotext enables DemoFusion
    if others.keys() >= set(CONTROLLED[1:]):
        others[CONTROLLED[0]] = True
    if given.get("preset") is not None:
        others = {name: value for name, value in others.items() if name not in PRESET_FIELDS}
    return {**others, **{name: value for name, value in given.items() if value is not None or name not in others}}


def settings_from_args(args: Sequence[object], preset: str = Settings.preset, choices: Choices = BUILT_IN) -> Settings:
    """Converts a script's arguments to Settings. The arguments are values in the order of the fields, or one dict.

    If the arguments contain no preset, the argument `preset` is used. Raises SettingsError.
    """
    return parse_settings(_by_name(args), preset, choices)


def is_enabled(args: Sequence[object], overrides: Mapping[str, object]) -> bool:
    """Returns whether a script's arguments enable DemoFusion. `overrides` are values by field that replace arguments.

    Arguments without `enabled` do not enable DemoFusion. If a dict without `enabled` contains an unknown field, raises
    SettingsError, because the unknown field may be a misspelt `enabled`. Also raises SettingsError if the value of
    `enabled` is neither true nor false.
    """
    values = _by_name(args)
    if values and NAMES[0] not in values:
        _check_names(values)
    given = {**values, **overrides}.get(NAMES[0])
    return Settings.enabled if given is None else SPECS[NAMES[0]].parse(NAMES[0], given, BUILT_IN)


def overridden(settings: Settings, values: Mapping[str, object], choices: Choices = BUILT_IN) -> Settings:
    """Returns the settings with some fields replaced by `values`. Raises SettingsError.

    If `values` contains a preset, the fields get the values of this preset first, and then the other `values`.
    """
    of_preset: Mapping[str, object] = {}
    if values.get("preset") is not None:
        of_preset = preset_values(SPECS["preset"].parse("preset", values["preset"], choices), choices)
    return parse_settings({**asdict(settings), **of_preset, **values}, choices=choices)


def needs_more_steps(settings: Settings, steps: int, cfg_scale: float, distilled: bool = False) -> bool:
    """Returns whether the denoising strength is above MOST_STRENGTH and the request looks like a few-step request.

    With a few-step model, more steps or a lower denoising strength are then needed.
    """
    return settings.denoising_strength > MOST_STRENGTH and looks_few_step(steps, cfg_scale, distilled)


def with_automatic_preset(
    settings: Settings, steps: int, cfg_scale: float, choices: Choices = BUILT_IN, distilled: bool = False
) -> Settings:
    """Returns the settings with the preset that `automatic_preset` chooses, and with its values.

    Returns the settings unchanged if a value differs from the current preset.
    """
    preset = automatic_preset(settings.preset, steps, cfg_scale, distilled)
    if preset == settings.preset or changed_fields(settings.preset, asdict(settings), choices):
        return settings
    return replace(settings, preset=preset, **preset_values(preset, choices))


def to_infotext(settings: Settings, choices: Choices = BUILT_IN) -> dict[str, str]:
    """Returns the infotext of the settings: the values that differ from the defaults, as texts, by infotext key.

    The name of the preset gets the suffix CHANGED if a value differs from the preset. ENABLED_KEY is not in the result.
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
    """Reads the value of field `name` from a parsed infotext. If it is missing or not valid, returns the default.

    The field `enabled` is True if the infotext contains its key, with any value.
    """
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
