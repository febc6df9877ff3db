"""Stand-in: callbacks that extensions register when they load."""

from collections.abc import Callable
from typing import Any

_callbacks: dict[str, list[Callable]] = {"after_component": [], "ui_settings": []}
callback_map: dict[str, list[Callable]] = {"callbacks_cfg_denoiser": []}
"""The webui's map of callbacks, with only the kind that DemoFusion Hires reads. The stand-in calls none of them."""


def call(kind: str, *args: Any, **kwargs: Any) -> None:
    """Calls the registered callbacks of one kind."""
    for callback in _callbacks[kind]:
        callback(*args, **kwargs)


def on_after_component(callback: Callable, *, name: str | None = None) -> None:
    """Registers a callback for components of the page. The stand-in calls it only for the component `settings_json`."""
    _callbacks["after_component"].append(callback)


def on_ui_settings(callback: Callable, *, name: str | None = None) -> None:
    """Registers a callback that adds settings."""
    _callbacks["ui_settings"].append(callback)
