"""Settings from what people and programs give: arguments, dicts, presets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lib_demofusion.settings.fields import NAMES, PRESET_FIELDS, SPECS, Settings
from lib_demofusion.settings.presets import BUILT_IN, Offers
from lib_demofusion.settings.spec import SettingsError, shortened


def preset_values(preset: str, offers: Offers = BUILT_IN) -> dict[str, Any]:
    """Returns the value of every field that a preset sets."""
    return {**{name: getattr(Settings, name) for name in PRESET_FIELDS}, **offers.differing(preset)}


def changed_fields(preset: str, values: Mapping[str, object], offers: Offers = BUILT_IN) -> tuple[str, ...]:
    """Returns the fields among `values` that no longer have what the preset gave them; one of none is changed too."""

    def as_read(name: str) -> object:
        try:
            return SPECS[name].parse(name, values[name], offers)
        except SettingsError:
            return None

    given = preset_values(preset, offers)
    return tuple(name for name in PRESET_FIELDS if name in values and as_read(name) != given[name])


def parse_preset(values: Mapping[str, object], offers: Offers = BUILT_IN) -> dict[str, Any]:
    """Returns a preset's values, checked; raises SettingsError at one that no preset sets or that is impossible."""
    for name in values:
        if name not in PRESET_FIELDS:
            raise _unknown(name, values[name], PRESET_FIELDS)
    return {name: SPECS[name].parse(name, value, offers) for name, value in values.items()}


def parse_settings(values: Mapping[str, object], preset: str = Settings.preset, offers: Offers = BUILT_IN) -> Settings:
    """Returns the Settings that `values` describes; a field that is missing or None has its preset's value.

    `preset` is the one of values that name none. Raises SettingsError at the first name that is no field, or value that
    its field cannot take.
    """
    _check_names(values)
    parsed = {name: SPECS[name].parse(name, value, offers) for name, value in values.items() if value is not None}
    parsed.setdefault("preset", preset)
    return Settings(**{**offers.differing(parsed["preset"]), **parsed})


def _check_names(values: Mapping[str, object]) -> None:
    for name in values:
        if name not in SPECS:
            raise _unknown(name, values[name], NAMES)


def _unknown(name: object, value: object, known: Sequence[str]) -> SettingsError:
    """Returns the error for a name that is no field; such a name may be empty or of any type."""
    return SettingsError(str(name), value, "the fields " + ", ".join(known), shown=f"the field {shortened(name)}")


def names_preset(args: Sequence[object]) -> bool:
    """Returns whether a script's arguments name a preset."""
    return _by_name(args).get("preset") is not None


def fields_without_switch(args: Sequence[object]) -> tuple[str, ...]:
    """Returns the fields that a script's arguments give, if `enabled` is not among them; else none."""
    given = tuple(str(name) for name, value in _by_name(args).items() if value is not None)
    return () if "enabled" in given else given


def ignored_values(args: Sequence[object]) -> list[object]:
    """Returns the values behind a dict of fields, which is the only argument that is read."""
    return [value for value in args[1:] if value is not None] if args and isinstance(args[0], Mapping) else []


def _by_name(args: Sequence[object]) -> Mapping[str, object]:
    """Returns a script's arguments by field: values in field order, or one dict of fields in first place."""
    return args[0] if args and isinstance(args[0], Mapping) else dict(zip(NAMES, args))


def settings_from_args(args: Sequence[object], preset: str = Settings.preset, offers: Offers = BUILT_IN) -> Settings:
    """Returns the Settings of a script's arguments: values in field order, or one dict of fields in first place.

    `preset` is the one of arguments that name none.
    """
    return parse_settings(_by_name(args), preset, offers)


def is_enabled(args: Sequence[object], overrides: Mapping[str, object]) -> bool:
    """Returns whether a script's arguments, or what stands in for some of them, switch DemoFusion on.

    A dict without `enabled` leaves it off. Nothing else of it matters then, unless it names what is no field, as where
    `enabled` is misspelt. Raises SettingsError for that, and for a value that is neither on nor off.
    """
    values = args[0] if args and isinstance(args[0], Mapping) else dict(zip(NAMES[:1], args))
    if values and NAMES[0] not in values:
        _check_names(values)
    given = {**values, **overrides}.get(NAMES[0])
    return Settings.enabled if given is None else SPECS[NAMES[0]].parse(NAMES[0], given, BUILT_IN)


def overridden(settings: Settings, values: Mapping[str, object], offers: Offers = BUILT_IN) -> Settings:
    """Returns the settings with other values; a preset among these sets its fields before the rest."""
    of_preset: Mapping[str, object] = {}
    if values.get("preset") is not None:
        of_preset = preset_values(SPECS["preset"].parse("preset", values["preset"], offers), offers)
    return parse_settings({**asdict(settings), **of_preset, **values}, offers=offers)
