"""The parameters of a run: names, ranges, labels and infotext keys are declared here and derived everywhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from lib_demofusion.settings.spec import FEWEST, SettingsError, Spec

_QUICKER = {
    "stages": FEWEST,
    "feather": 0.25,
    "anchor": "mixed",
    # from above a half on, the dilated views alone decide what is where
    "strength": 0.5,
    "local_threshold": 0.5,
    "keep_colours": True,
}

PRESETS: dict[str, dict[str, Any]] = {
    "Paper": {},
    "Balanced": {**_QUICKER, "overlap": 0.35, "dilated_threshold": 0.1, "extra_noise": 0.08},
    "Fast": {**_QUICKER, "overlap": 0.25, "stage_steps": 10, "dilated_threshold": 0.25, "extra_noise": 0.06},
}
"""Values by preset name that differ from the fields' own, which are the paper's."""

DEFAULT_PRESET = "Balanced"
"""What the panel opens with, and what a request gets that names none."""

_user_presets: Mapping[str, Mapping[str, Any]] = {}

ANCHORS = LATENT, PIXELS, MIXED = ("latent", "pixels", "mixed")
"""What is enlarged between stages: the latent (bicubic), or the picture (by an upscaler), which is encoded again, or
both: the coarse part of the former and the fine part of the latter."""

LANCZOS = "Lanczos"
"""The upscaler that is always there."""

_host_upscalers: Callable[[], Sequence[str]] = tuple


def use_presets(presets: Mapping[str, Mapping[str, Any]]) -> None:
    """Makes these, checked by parse_preset, the user's presets instead of those before."""
    global _user_presets
    # one assignment: jobs read while the page writes
    _user_presets = {name: dict(values) for name, values in presets.items() if name not in PRESETS}


def offer_upscalers(names: Callable[[], Sequence[str]]) -> None:
    """Makes the upscalers that `names` returns choices too; it is asked anew each time."""
    global _host_upscalers
    _host_upscalers = names


def upscaler_names() -> tuple[str, ...]:
    """Returns the upscalers that a picture may be enlarged by."""
    return (LANCZOS, *(name for name in _host_upscalers() if name != LANCZOS))


def preset_names() -> tuple[str, ...]:
    """Returns the built-in names, then the user's."""
    return (*PRESETS, *_user_presets)


def _differing(preset: str) -> Mapping[str, Any]:
    """Returns the values of a preset that differ from the defaults; none where it is gone by now."""
    return PRESETS.get(preset) or _user_presets.get(preset, {})


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
    preset: str = _spec("Paper", str, "Preset", "preset", "sets the values below", offered=preset_names)
    stages: str = _spec(
        "", str, "Stages", "stages", "scales such as 1,2,4, or: doubling, fewest; empty = every whole scale"
    )
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
        0,
        int,
        "Stride",
        "stride",
        "between local views, in cells; 0 = from the overlap",
        minimum=0,
        maximum=512,
        step=4,
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
        "the latent, as the paper, the picture, or both",
        offered=lambda: ANCHORS,
    )
    overlap: float = _spec(
        0.5,
        float,
        "Overlap",
        "overlap",
        "of neighbouring local views, of their side; 0.5 = the paper",
        minimum=0,
        maximum=0.9,
        step=0.05,
    )
    stage_steps: int = _spec(
        0,
        int,
        "Stage steps",
        "stage steps",
        "of the whole schedule, at most; 0 = as the base",
        minimum=0,
        maximum=150,
        step=1,
    )
    keep_colours: bool = _spec(
        False, bool, "Keep colours", "keep colours", "large areas keep the base picture's tone; off = the paper"
    )
    upscaler: str = _spec(
        LANCZOS, str, "Upscaler", "upscaler", "of the picture, where that is enlarged", offered=upscaler_names
    )
    extra_noise: float = _spec(
        0.0,
        float,
        "Extra noise",
        "extra noise",
        "as a stage begins; becomes detail; 0 = the paper",
        minimum=0,
        maximum=0.2,
        step=0.01,
    )


SPECS: dict[str, Spec] = {f.name: f.metadata["spec"] for f in fields(Settings)}
NAMES: tuple[str, ...] = tuple(SPECS)
ENABLED_KEY = SPECS["enabled"].infotext

OF_THE_REQUEST = frozenset(
    ("enabled", "scale", "width", "height", "preset", "view_batch", "save_stages", "return_stages", "redraw_base")
)
"""The fields that no preset sets: what is asked for, and what depends on the machine."""

PRESET_FIELDS: tuple[str, ...] = tuple(name for name in NAMES if name not in OF_THE_REQUEST)
"""The fields that a preset sets."""


def preset_values(preset: str) -> dict[str, Any]:
    """Returns the value of every field that a preset sets."""
    return {**{name: getattr(Settings, name) for name in PRESET_FIELDS}, **_differing(preset)}


def changed_fields(preset: str, values: Mapping[str, object]) -> tuple[str, ...]:
    """Returns the fields among `values` that no longer have what the preset gave them; one of none is changed too."""

    def as_read(name: str) -> object:
        try:
            return SPECS[name].parse(name, values[name])
        except SettingsError:
            return None

    given = preset_values(preset)
    return tuple(name for name in PRESET_FIELDS if name in values and as_read(name) != given[name])


def parse_preset(values: Mapping[str, object]) -> dict[str, Any]:
    """Returns a preset's values, checked; raises SettingsError at one that no preset sets or that is impossible."""
    for name in values:
        if name not in PRESET_FIELDS:
            raise SettingsError(str(name), values[name], "the fields " + ", ".join(PRESET_FIELDS))
    return {name: SPECS[name].parse(name, value) for name, value in values.items()}


def parse_settings(values: Mapping[str, object], preset: str = Settings.preset) -> Settings:
    """Returns the Settings that `values` describes; a field that is missing or None has its preset's value.

    `preset` is the one of values that name none. Raises SettingsError at the first name that is no field, or value that
    its field cannot take.
    """
    _check_names(values)
    parsed = {name: SPECS[name].parse(name, value) for name, value in values.items() if value is not None}
    parsed.setdefault("preset", preset)
    return Settings(**{**_differing(parsed["preset"]), **parsed})


def _check_names(values: Mapping[str, object]) -> None:
    for name in values:
        if name not in SPECS:
            raise SettingsError(str(name), values[name], "the fields " + ", ".join(NAMES))


def settings_from_args(args: Sequence[object], preset: str = Settings.preset) -> Settings:
    """Returns the Settings of a script's arguments: values in field order, or one dict of fields in first place.

    `preset` is the one of arguments that name none.
    """
    if args and isinstance(args[0], Mapping):
        return parse_settings(args[0], preset)
    return parse_settings(dict(zip(NAMES, args)), preset)


def is_enabled(args: Sequence[object], overrides: Mapping[str, object]) -> bool:
    """Returns whether a script's arguments, or what stands in for some of them, switch DemoFusion on.

    A dict without `enabled` leaves it off. Nothing else of it matters then, unless it names what is no field, as where
    `enabled` is misspelt. Raises SettingsError for that, and for a value that is neither on nor off.
    """
    values = args[0] if args and isinstance(args[0], Mapping) else dict(zip(NAMES[:1], args))
    if values and NAMES[0] not in values:
        _check_names(values)
    given = {**values, **overrides}.get(NAMES[0])
    return Settings.enabled if given is None else SPECS[NAMES[0]].parse(NAMES[0], given)


def overridden(settings: Settings, values: Mapping[str, object]) -> Settings:
    """Returns the settings with other values; a preset among these sets its fields before the rest."""
    of_preset: Mapping[str, object] = {}
    if values.get("preset") is not None:
        of_preset = preset_values(SPECS["preset"].parse("preset", values["preset"]))
    return parse_settings({**asdict(settings), **of_preset, **values})
