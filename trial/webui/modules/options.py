"""Stand-in: the classes of the settings."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any


@dataclass
class OptionInfo:
    """One setting, with the texts that a real webui shows on its settings page. The stand-in shows no such page."""

    default: Any = None
    label: str = ""
    component: Any = None
    component_args: Any = None
    refresh: Any = None
    section: tuple[str, str] | None = None
    comment_after: str = ""

    def info(self, info: str) -> "OptionInfo":
        self.comment_after += f"<span class='info'>({info})</span>"
        return self

    def needs_reload_ui(self) -> "OptionInfo":
        self.comment_after += " <span class='info'>(requires Reload UI)</span>"
        return self


class Options(SimpleNamespace):
    """The values of all settings, as attributes."""

    data_labels: dict[str, OptionInfo]

    def add_option(self, key: str, info: OptionInfo) -> None:
        """Adds a setting of an extension."""
        self.data_labels[key] = info
        self.__dict__.setdefault(key, info.default)
