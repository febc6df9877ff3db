"""Stand-in: the settings, without their page."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class OptionInfo:
    """One setting and its texts on the settings page."""

    def __init__(
        self,
        default: Any = None,
        label: str = "",
        component: Any = None,
        component_args: Any = None,
        onchange: Callable | None = None,
        section: tuple | None = None,
        refresh: Callable | None = None,
        comment_before: str = "",
        comment_after: str = "",
        infotext: str | None = None,
        restrict_api: bool = False,
        category_id: str | None = None,
    ):
        self.default = default
        self.label = label
        self.component_args = component_args
        self.comment_after = comment_after

    def info(self, info: str) -> "OptionInfo":
        self.comment_after += f"<span class='info'>({info})</span>"
        return self

    def needs_reload_ui(self) -> "OptionInfo":
        self.comment_after += " <span class='info'>(requires Reload UI)</span>"
        return self


class Options(SimpleNamespace):
    """The values of the settings as attributes."""

    def add_option(self, key: str, info: OptionInfo) -> None:
        """Adds a setting of an extension."""
        self.__dict__.setdefault("data_labels", {})[key] = info
        self.__dict__.setdefault(key, info.default)
