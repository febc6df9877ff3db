"""Defines the error for a value that is not valid, and formats values of any type for messages."""

from __future__ import annotations

from collections.abc import Callable


class SettingsError(ValueError):
    """Raised for an unknown field or a value that is not valid.

    The attributes are the name of the field, the value, and a description of the allowed values. For an unknown field,
    the description lists the fields that are allowed. The message is "NAME: VALUE is not valid. Use ALLOWED". If
    `problem` is given, it replaces the first of these two sentences.
    """

    def __init__(self, name: str, value: object, allowed: str, problem: str = ""):
        super().__init__(f"{problem or f'{name}: {shortened(value)} is not valid'}. Use {allowed}")
        self.name = name
        self.value = value
        self.allowed = allowed


def shortened(value: object, length: int = 60) -> str:
    """Returns the repr of a value. If it is longer than `length` characters, its end is replaced by an ellipsis."""
    text = written(value, repr)
    return text if len(text) <= length else text[: length - 1] + "…"


def written(value: object, write: Callable[[object], str] = str) -> str:
    """Converts `value` to text with the function `write`. If this fails, returns the name of the value's type.

    The conversion fails for integers with too many digits and for lists that are nested too deeply.
    """
    try:
        return write(value)
    except (ValueError, RecursionError):
        return f"<{type(value).__name__}>"
