"""Stand-in: callbacks that extensions register when they are loaded."""

from collections.abc import Callable
from typing import Any

from modules import errors

_callbacks: dict[str, list[Callable]] = {}
callback_map: dict[str, list[Callable]] = {"callbacks_cfg_denoiser": []}
"""The part of the webui's own that the extension reads; here nothing is called while a picture is made."""


def call(kind: str, *args: Any, **kwargs: Any) -> None:
    """Calls what was registered, and survives its errors."""
    for callback in _callbacks.get(kind, []):
        try:
            callback(*args, **kwargs)
        except Exception:
            errors.report(f"Error in a callback on {kind}", exc_info=True)


def _add(kind: str, callback: Callable) -> None:
    _callbacks.setdefault(kind, []).append(callback)


def on_app_started(callback: Callable, *, name: str | None = None) -> None:
    """Registers what is called with the page and its web application."""
    _add("app_started", callback)


def on_after_component(callback: Callable, *, name: str | None = None) -> None:
    """Registers what is told of components of the page; here only of those that belong to no tab."""
    _add("after_component", callback)


def on_infotext_pasted(callback: Callable, *, name: str | None = None) -> None:
    """Registers what is called with a pasted infotext and its parameters, which it may change."""
    _add("infotext_pasted", callback)


def on_ui_settings(callback: Callable, *, name: str | None = None) -> None:
    """Registers what adds settings."""
    _add("ui_settings", callback)
