"""The parameters of a run: names, ranges, labels and infotext keys are declared here and derived everywhere else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

MAX_SCALE = 8

STAGES_ALLOWED = f"rising scales between 1 and {MAX_SCALE} such as 1,2,4, or nothing for automatic"

PRESETS: dict[str, dict[str, Any]] = {"Paper": {}}
"""Values by preset name that differ from the defaults below."""


ANCHORS = LATENT, PIXELS = ("latent", "pixels")
"""What is enlarged between stages: the latent (bicubic), or the picture (Lanczos), which is encoded again."""


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
    choices: tuple[str, ...] = ()

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
    """Returns the scales of a stage list without the leading 1 that stands for the base; empty for automatic."""
    if not text:
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


def _spec(default: Any, kind: type, label: str, infotext: str, info: str = "", **limits: Any) -> Any:
    spec = Spec(kind, label, info, f"DemoFusion {infotext}".rstrip(), **limits)
    return field(default=default, metadata={"spec": spec})


def _threshold(label: str, infotext: str) -> Any:
    info = "their weight; 0 = only where they round away, as in the paper"
    return _spec(0.0, float, label, infotext, info, minimum=0, maximum=0.5, step=0.01)


@dataclass(frozen=True)
class Settings:
    """All parameters of a DemoFusion run. The order of the fields is the order of the API's positional arguments."""

    enabled: bool = _spec(False, bool, "DemoFusion", "")
    scale: float = _spec(2.0, float, "Scale", "scale", "against the base picture", minimum=1, maximum=8, step=0.05)
    width: int = _spec(0, int, "Final width", "width", "pixels; 0 = from the scale", minimum=0, maximum=16384, step=8)
    height: int = _spec(
        0, int, "Final height", "height", "pixels; 0 = from the scale", minimum=0, maximum=16384, step=8
    )
    preset: str = _spec("Paper", str, "Preset", "preset", "sets the values below", choices=tuple(PRESETS))
    stages: str = _spec("", str, "Stages", "stages", "scales such as 1,2,4; empty = every whole scale")
    window: int = _spec(
        0,
        int,
        "Window",
        "window",
        "of a local view, in cells of 8 px; 0 = the base picture's size",
        minimum=0,
        maximum=512,
        step=8,
    )
    stride: int = _spec(
        0, int, "Stride", "stride", "between local views, in cells; 0 = half the window", minimum=0, maximum=512, step=4
    )
    view_batch: int = _spec(
        0,
        int,
        "View batch",
        "view batch",
        "views at once; 0 = automatic; more is faster, takes memory",
        minimum=0,
        maximum=64,
        step=1,
    )
    cosine_scale_1: float = _spec(
        3.0,
        float,
        "Cosine scale 1 (skip residual)",
        "cosine scale 1",
        "smaller = closer to the stage before, and to its blur",
        minimum=0,
        maximum=10,
        step=0.1,
    )
    cosine_scale_2: float = _spec(
        1.0,
        float,
        "Cosine scale 2 (dilated views)",
        "cosine scale 2",
        "smaller = fewer repeated subjects, more grain",
        minimum=0,
        maximum=10,
        step=0.1,
    )
    cosine_scale_3: float = _spec(
        1.0,
        float,
        "Cosine scale 3 (blur)",
        "cosine scale 3",
        "larger = the blur before the dilated views fades sooner",
        minimum=0,
        maximum=10,
        step=0.1,
    )
    sigma: float = _spec(
        0.8,
        float,
        "Blur sigma",
        "sigma",
        "before the dilated views, in cells; larger = smoother",
        minimum=0.01,
        maximum=10,
        step=0.01,
    )
    strength: float = _spec(
        1.0,
        float,
        "Strength",
        "strength",
        "share of the schedule that a stage runs; 1 = the paper",
        minimum=0.05,
        maximum=1,
        step=0.05,
    )
    jitter: bool = _spec(True, bool, "Jitter", "jitter", "shift the local views at every step")
    save_stages: bool = _spec(False, bool, "Save every stage", "save stages")
    return_stages: bool = _spec(False, bool, "Show every stage", "return stages")
    redraw_base: bool = _spec(
        False,
        bool,
        "Redraw the base first",
        "redraw base",
        "by the webui's own img2img pass; off = upscale the upload as it is",
    )
    dilated_threshold: float = _threshold("Skip dilated views below", "dilated threshold")
    local_threshold: float = _threshold("Skip local views below", "local threshold")
    feather: float = _spec(
        0.0,
        float,
        "Feather",
        "feather",
        "edge of a local view that fades, of its side; 0 = the paper",
        minimum=0,
        maximum=0.5,
        step=0.05,
    )
    anchor: str = _spec(
        "latent",
        str,
        "Enlarge between stages",
        "anchor",
        "the latent, as the paper, or the picture",
        choices=ANCHORS,
    )


SPECS: dict[str, Spec] = {f.name: f.metadata["spec"] for f in fields(Settings)}
NAMES: tuple[str, ...] = tuple(SPECS)
ENABLED_KEY = SPECS["enabled"].infotext


def parse_settings(values: Mapping[str, object]) -> Settings:
    """Returns the Settings that `values` describes; a field that is missing or None has its preset's value.

    Raises SettingsError at the first name that is no field, or value that its field cannot take.
    """
    for name in values:
        if name not in SPECS:
            raise SettingsError(str(name), values[name], "the fields " + ", ".join(NAMES))
    parsed = {name: SPECS[name].parse(name, value) for name, value in values.items() if value is not None}
    return Settings(**{**PRESETS[parsed.get("preset", Settings.preset)], **parsed})


def settings_from_args(args: Sequence[object]) -> Settings:
    """Returns the Settings of a script's arguments: values in field order, or one dict of fields in first place."""
    if args and isinstance(args[0], Mapping):
        return parse_settings(args[0])
    return parse_settings(dict(zip(NAMES, args)))


def to_infotext(settings: Settings) -> dict[str, str]:
    """Returns infotext keys and values of what differs from the defaults; all are text that the host can parse back."""
    pairs = ((spec.infotext, getattr(settings, name), getattr(Settings, name)) for name, spec in SPECS.items())
    return {key: _infotext_value(value) for key, value, default in pairs if value != default and key != ENABLED_KEY}


def _infotext_value(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def from_infotext(name: str, params: Mapping[str, object]) -> Any:
    """Returns the value of field `name` in a parsed infotext: the default where the text has none or a broken one."""
    spec = SPECS[name]
    if name == "enabled":
        return ENABLED_KEY in params
    try:
        return spec.parse(name, params[spec.infotext])
    except (KeyError, SettingsError):
        return getattr(Settings, name)
