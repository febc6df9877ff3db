"""What is known about one parameter: its type and range, the words shown to people, and how its values are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

MAX_SCALE = 8

DOUBLING, FEWEST = STAGE_WORDS = ("doubling", "fewest")
"""Stage lists that follow the scale: 2, 4 and so on below it, or as few as enlarge by no more than 4 each."""

STAGES_ALLOWED = (
    f"rising scales between 1 and {MAX_SCALE} such as 1,2,4, the words doubling or fewest, or nothing for all"
)


class SettingsError(ValueError):
    """A parameter that cannot be used, with the field's name, the value and what would be allowed."""

    def __init__(self, name: str, value: object, allowed: str):
        super().__init__(f"{name} = {_shortened(value)} is not possible; allowed: {allowed}")
        self.name = name
        self.value = value
        self.allowed = allowed


def _shortened(value: object, length: int = 60) -> str:
    text = _written(value, repr)
    return text if len(text) <= length else text[: length - 1] + "…"


def _written(value: object, write: Callable[[object], str] = str) -> str:
    """Returns `value` as text, or its type where Python refuses: an int of thousands of digits, a list as deep."""
    try:
        return write(value)
    except (ValueError, RecursionError):
        return f"<{type(value).__name__}>"


@dataclass(frozen=True)
class Spec:
    """What is known about one field besides its default: its type and range, and the words shown to people."""

    kind: type
    label: str
    info: str
    infotext: str
    minimum: float = 0
    maximum: float = 0
    step: float = 0
    offered: Callable[[], tuple[str, ...]] = tuple
    """Asked anew each time: users add to the choices while the webui runs."""

    @property
    def choices(self) -> tuple[str, ...]:
        """The permitted texts, empty where any will do."""
        return self.offered()

    @property
    def allowed(self) -> str:
        """The permitted values in words."""
        if self.kind is bool:
            return "true or false"
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.kind is str:
            return STAGES_ALLOWED
        noun = "a whole number" if self.kind is int else "a number"
        return f"{noun} from {self.minimum:g} to {self.maximum:g}"

    def parse(self, name: str, value: object) -> Any:
        """Returns `value` as this field's type; raises SettingsError where it is of another type or out of range."""
        if self.kind is bool:
            return _parse_bool(self, name, value)
        if self.kind is str:
            return _parse_text(self, name, value)
        return _parse_number(self, name, value)


def _parse_bool(spec: Spec, name: str, value: object) -> bool:
    words = {"true": True, "false": False, "1": True, "0": False}
    parsed = words.get(_written(value).strip().lower())
    if parsed is None:
        raise SettingsError(name, value, spec.allowed)
    return parsed


def _parse_text(spec: Spec, name: str, value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        value = ",".join(_written(entry) for entry in value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = f"{value:g}" if isinstance(value, float) else _written(value)
    if not isinstance(value, str):
        raise SettingsError(name, value, spec.allowed)
    text = value.strip()
    if spec.choices and text not in spec.choices:
        raise SettingsError(name, value, spec.allowed)
    if not spec.choices:
        parse_stages(text)
    return text


def parse_stages(text: str) -> list[float]:
    """Returns the scales of a stage list without the leading 1 that stands for the base.

    Empty where the list follows the scale: for no text, and for the STAGE_WORDS.
    """
    if not text or text in STAGE_WORDS:
        return []
    try:
        scales = [float(entry) for entry in text.replace(";", ",").split(",")]
    except ValueError:
        raise SettingsError("stages", text, STAGES_ALLOWED) from None
    rising = all(a < b for a, b in pairwise(scales))
    if not rising or not all(1 <= scale <= MAX_SCALE for scale in scales):
        raise SettingsError("stages", text, STAGES_ALLOWED)
    return scales[1:] if scales[0] == 1 else scales


def _parse_number(spec: Spec, name: str, value: object) -> float | int:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    whole = spec.kind is not int or number.is_integer()
    if not spec.minimum <= number <= spec.maximum or not whole:
        raise SettingsError(name, value, spec.allowed)
    return int(number) if spec.kind is int else number
