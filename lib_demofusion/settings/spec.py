"""Describes one parameter: its type and range, the texts shown to users, and the parsing of its values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lib_demofusion.settings.presets import Offers


class SettingsError(ValueError):
    """Raised for an unknown field or a bad value. Holds the field's name, the value, and the allowed values or names.

    `shown` replaces the field's name in the message.
    """

    def __init__(self, name: str, value: object, allowed: str, shown: str = ""):
        super().__init__(f"{shown or name} = {shortened(value)} is not possible; allowed: {allowed}")
        self.name = name
        self.value = value
        self.allowed = allowed


def shortened(value: object, length: int = 60) -> str:
    """Returns the value's repr, shortened to `length` characters."""
    text = _written(value, repr)
    return text if len(text) <= length else text[: length - 1] + "…"


def _written(value: object, write: Callable[[object], str] = str) -> str:
    """Converts `value` to text, or to the name of its type if Python cannot (ints that are too long, nested lists)."""
    try:
        return write(value)
    except (ValueError, RecursionError):
        return f"<{type(value).__name__}>"


def _no_choices(offers: Offers) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class Spec:
    """Describes one field apart from its default: its type and range, and the texts shown to users."""

    kind: type
    label: str
    info: str
    infotext: str
    minimum: float = 0
    maximum: float = 0
    step: float = 0
    choices: Callable[[Offers], tuple[str, ...]] = _no_choices
    """Returns the texts that are allowed, including those of users and the webui. Empty if any text is allowed."""
    unlisted: Callable[[Offers], tuple[str, ...]] = _no_choices
    """Returns more texts that are allowed, but not shown to users."""
    words: tuple[str, ...] = ()
    """Suggested texts; others are allowed too. For a bool, the texts that the panel shows for False and True, which are
    parsed as these values."""
    read: Callable[[str], object] | None = None
    """Parses a text. Raises SettingsError if it is not valid."""
    texts: str = ""
    """A description of the texts that `read` accepts."""
    when_empty: str = ""
    """The text that replaces an empty text."""

    def allowed(self, offers: Offers) -> str:
        """Describes the allowed values in words."""
        if self.kind is bool:
            return "true or false"
        if self.kind is str:
            return self.texts or "one of " + ", ".join(self.choices(offers))
        noun = "a whole number" if self.kind is int else "a number"
        return f"{noun} from {self.minimum:g} to {self.maximum:g}"

    def choice(self, value: Any) -> Any:
        """Converts `value` to that of the panel's control: one of `words` for a bool that has them, else unchanged."""
        return self.words[bool(value)] if self.kind is bool and self.words else value

    def parse(self, name: str, value: object, offers: Offers) -> Any:
        """Converts `value` to this field's type. Raises SettingsError if it has the wrong type or is out of range."""
        if self.kind is bool:
            return _parse_bool(name, value, self.allowed(offers), self.words)
        if self.kind is str:
            return _parse_text(self, name, value, offers)
        return _parse_number(self, name, value, self.allowed(offers))


def _parse_bool(name: str, value: object, allowed: str, own: Sequence[str] = ()) -> bool:
    words = {"true": True, "false": False, "1": True, "0": False}
    words.update({word.lower(): bool(place) for place, word in enumerate(own)})
    parsed = words.get(_written(value).strip().lower())
    if parsed is None:
        raise SettingsError(name, value, allowed)
    return parsed


def _parse_text(spec: Spec, name: str, value: object, offers: Offers) -> str:
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        value = ",".join(_written(entry) for entry in value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = f"{value:g}" if isinstance(value, float) else _written(value)
    if not isinstance(value, str):
        raise SettingsError(name, value, spec.allowed(offers))
    text = value.strip() or spec.when_empty
    if spec.read is not None:
        spec.read(text)
    elif text not in (*spec.choices(offers), *spec.unlisted(offers)):
        raise SettingsError(name, value, spec.allowed(offers))
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
