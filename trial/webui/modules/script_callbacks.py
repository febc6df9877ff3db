"""Stand-in: callbacks that extensions register when they load."""

from collections.abc import Callable
from typing import Any

from modules import errors

_callbacks: dict[str, list[Callable]] = {}
callback_map: dict[str, list[Callable]] = {"callbacks_cfg_denoiser": []}
"""The part of the webui's own map that the extension reads. The stand-in calls none of these during sampling."""


def call(kind: str, *args: Any, **kwargs: Any) -> None:
    """Calls the registered callbacks and continues after their errors."""
    for callback in _callbacks.get(kind, []):
        try:
            callback(*args, **kwargs)
        except Exception:
            errors.report(f"Error in a callback on {kind}", exc_info=True)


def _add(kind: str, callback: Callable) -> None:
    _callbacks.setdefault(kind, []).append(callback)


def on_app_started(callback: Callable, *, name: str | None = None) -> None:
    """Registers a callback for the start of the page. It receives the page and its web application."""
    _add("app_started", callback)


def on_after_component(callback: Callable, *, name: str | None = None) -> None:
    """Registers a callback for components of the page. Here it receives only components that belong to no tab."""
    _add("after_component", callback)


def on_ui_settings(callback: Callable, *, name: str | None = None) -> None:
    """Registers a callback that adds settings."""
    _add("ui_settings", callback)
