"""Adds one axis for every field to the webui's X/Y/Z plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from modules import scripts

from lib_demofusion.host.common import user_presets
from lib_demofusion.settings.errors import SettingsError
from lib_demofusion.settings.fields import SPECS
from lib_demofusion.settings.presets import BUILT_IN, Choices
from lib_demofusion.settings.spec import Spec

OVERRIDES = "_demofusion_xyz"
"""Name of an attribute of a request: a dict with the values that the plot sets, by field."""
PREFIX = "[DemoFusion] "


def register() -> None:
    """Adds the axes, unless they exist already. Finds the module of the X/Y/Z plot by its file name."""
    module = next((data.module for data in scripts.scripts_data if Path(data.path).name == "xyz_grid.py"), None)
    if module is None or any(option.label.startswith(PREFIX) for option in module.axis_options):
        return
    module.axis_options.extend(_axis(module, name, spec) for name, spec in SPECS.items())


def overrides(p: Any) -> dict[str, Any]:
    """Returns the values that an X/Y/Z plot sets for the request `p`, by field."""
    return dict(getattr(p, OVERRIDES, {}))


def _axis(module: Any, name: str, spec: Spec) -> Any:
    label = PREFIX + ("Enabled" if name == "enabled" else spec.label)
    kind = spec.kind if spec.kind in (int, float) else str
    extra = {"choices": lambda: _choices(spec, user_presets.known_choices())} if _choices(spec, BUILT_IN) else {}
    return module.AxisOption(label=label, type=kind, apply=_apply(name), confirm=_confirm(name, spec), **extra)


def _choices(spec: Spec, known: Choices) -> list[str]:
    if spec.kind is bool:
        return ["True", "False"]
    return list(spec.choices(known))


def _apply(name: str) -> Callable[[Any, Any, Any], None]:
    def apply(p: Any, x: Any, xs: Any) -> None:
        # sets a new dict: the requests of the plot are shallow copies of one request, and would share a changed dict
        setattr(p, OVERRIDES, {**overrides(p), name: x})

    return apply


def _confirm(name: str, spec: Spec) -> Callable[[Any, Sequence[Any]], None]:
    """Returns a function that the webui calls before the plot starts, with the values `xs` of the axis.

    This function raises RuntimeError if a value is not valid.
    """

    def confirm(p: Any, xs: Sequence[Any]) -> None:
        known = user_presets.known_choices()
        for x in xs:
            try:
                spec.parse(name, x, known)
            except SettingsError as error:
                raise RuntimeError(str(error)) from error

    return confirm
