"""Describes one field: its type, its range, its texts for users, and the parsing of its values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lib_demofusion.settings.errors import SettingsError, written
from lib_demofusion.settings.presets import Choices


def _no_choices(choices: Choices) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class Spec:
    """Describes one field: its type, its range, and its texts for users. The default value is in `Settings`."""

    kind: type
    """bool, int, float or str."""
    label: str
    """The label of the field in the panel."""
    info: str
    """A short help text next to the label."""
    infotext: str
    """The key of the field in an infotext."""
    minimum: float = 0
    maximum: float = 0
    step: float = 0
    """For a number: the step of the slider in the panel. Values between the steps are allowed."""
    choices: Callable[[Choices], tuple[str, ...]] = _no_choices
    """For a text without `read`: returns the allowed texts that the panel lists.

    The argument contains the user's presets and the webui's upscalers.
    """
    unlisted: Callable[[Choices], tuple[str, ...]] = _no_choices
    """For a text without `read`: returns the allowed texts that the panel does not list."""
    words: tuple[str, ...] = ()
    """For a text with `read`: the texts that the panel lists. `read` can also allow others.

    For a bool: the texts of the panel's choices for False and True.
    """
    read: Callable[[str], object] | None = None
    """Parses a text, and raises SettingsError if it is not valid. `parse` ignores the result."""
    texts: str = ""
    """A description of the texts that `read` accepts."""
    when_empty: str = ""
    """The text that replaces an empty text."""

    def allowed(self, choices: Choices) -> str:
        """Returns a description of the allowed values for an error message."""
        if self.kind is bool:
            return "true or false"
        if self.kind is str:
            return self.texts or "one of " + ", ".join(self.choices(choices))
        noun = "a whole number" if self.kind is int else "a number"
        return f"{noun} from {self.minimum:g} to {self.maximum:g}"

    def choice(self, value: Any) -> Any:
        """Converts a value of the field to the value of its control: for a bool with `words`, one of the `words`."""
        return self.words[bool(value)] if self.kind is bool and self.words else value

    def parse(self, name: str, value: object, choices: Choices) -> Any:
        """Converts `value` to the type of this field. Raises SettingsError if the value is not allowed.

        `name` is the name of the field for the error. The value of a number field can be a text. The value of a text
        field can be a number, or a list, whose entries are joined with commas. The value of a bool field can also be 0,
        1, one of these as a text, "true" or "false", or one of `words`.
        """
        if self.kind is bool:
            return _parse_bool(name, value, self.allowed(choices), self.words)
        if self.kind is str:
            return _parse_text(self, name, value, choices)
        return _parse_number(self, name, value, self.allowed(choices))


def _parse_bool(name: str, value: object, allowed: str, own: Sequence[str] = ()) -> bool:
    words = {"true": True, "false": False, "1": True, "0": False}
    words.update({word.lower(): bool(place) for place, word in enumerate(own)})
    parsed = words.get(written(value).strip().lower())
    if parsed is None:
        raise SettingsError(name, value, allowed)
    return parsed


def _parse_text(spec: Spec, name: str, value: object, choices: Choices) -> str:
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        value = ",".join(written(entry) for entry in value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = f"{value:g}" if isinstance(value, float) else written(value)
    if not isinstance(value, str):
        raise SettingsError(name, value, spec.allowed(choices))
    text = value.strip() or spec.when_empty
    if spec.read is not None:
        spec.read(text)
    elif text not in (*spec.choices(choices), *spec.unlisted(choices)):
        raise SettingsError(name, value, spec.allowed(choices))
    return text


def _parse_number(spec: Spec, name: str, value: object, allowed: str) -> float | int:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    whole = spec.kind is not int or number.is_integer()
    if not spec.minimum <= number <= spec.maximum or not whole:
        raise SettingsError(name, value, allowed)
    return int(number) if spec.kind is int else number
