"""Defines the error for a value that is not valid, and formats any value for a message."""

from __future__ import annotations

from collections.abc import Callable


class SettingsError(ValueError):
    """Raised for an unknown field or a value that is not valid.

    The attributes are the name of the field, the value, and a description of the allowed values or names. `problem`
    replaces the first sentence of the message, which names the field and the value.
    """

    def __init__(self, name: str, value: object, allowed: str, problem: str = ""):
        super().__init__(f"{problem or f'{name}: {shortened(value)} is not valid'}. Use {allowed}")
        self.name = name
        self.value = value
        self.allowed = allowed


def shortened(value: object, length: int = 60) -> str:
    """Returns the value's repr, shortened to `length` characters."""
    text = written(value, repr)
    return text if len(text) <= length else text[: length - 1] + "…"


def written(value: object, write: Callable[[object], str] = str) -> str:
    """Converts `value` to text, or to the name of its type if Python cannot convert it.

    Python cannot convert integers with too many digits and lists that are nested too deeply.
    """
    try:
        return write(value)
    except (ValueError, RecursionError):
        return f"<{type(value).__name__}>"
