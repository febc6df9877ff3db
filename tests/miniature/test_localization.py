"""Tests that every visible text has a translation in every language, and that no translation is unused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from in_process import Webui
from modules import shared

from lib_demofusion.host.common import messages, options
from lib_demofusion.host.common import user_presets as presets
from lib_demofusion.host.integrations import refusals
from lib_demofusion.host.panel import line, preset_row
from lib_demofusion.host.panel.tab import TabValues
from lib_demofusion.settings.fields import SPECS

FOLDER = Path(__file__).resolve().parents[2] / "localizations"
LANGUAGES = sorted(path.stem for path in FOLDER.glob("*.json"))
IN_TEXT_NODES = (
    SPECS["img2img_first"].words,
    line.WORDS,
    line.WARNINGS,
    preset_row.WORDS,
    presets.SENTENCES,
    (options.DEFAULT_GONE, f"{messages.STOPPED} {messages.BASE_IMAGE}"),
    (reason for _, reason in refusals.REFUSALS),
)
"""Texts that the page shows next to other texts. Each of them is a text node of its own, so that it is translated."""


class TextNodes(HTMLParser):
    """Collects the text nodes in HTML, as the webui's localization.js does."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[str] = []
        self.feed(text)
        self.close()

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.found.append(data.strip())


def on_the_page(webui: Webui) -> Iterator[str]:
    """Yields the labels, help texts, placeholders and tooltips of the panel in both tabs."""
    for block in webui.page.blocks.values():
        if "demofusion" in (getattr(block, "elem_id", None) or ""):
            words = [getattr(block, name, None) for name in ("label", "info", "placeholder", "webui_tooltip")]
            yield from filter(None, words)


def on_the_settings_page() -> Iterator[str]:
    """Yields the labels, hints and choices of DemoFusion's settings on the settings page."""
    for key, option in shared.opts.data_labels.items():
        if not key.startswith("demofusion_"):
            continue
        yield option.label
        yield from (text for text in TextNodes(option.comment_after).found if text != "(requires Reload UI)")
        # if the arguments are a function, the choices are the names of presets, and these names are not translated
        arguments: Any = {} if callable(option.component_args) else option.component_args or {}
        yield from arguments.get("choices", ())


@pytest.fixture(scope="module")
def shown(webui: Webui) -> set[str]:
    """Returns all texts of the extension that a localization can translate."""
    constant = {text for texts in IN_TEXT_NODES for text in texts} | {refusals.REFUSED}
    return constant | set(on_the_page(webui)) | set(on_the_settings_page())


def translations(language: str) -> dict[str, str]:
    """Maps each English text to its translation."""
    return json.loads((FOLDER / f"{language}.json").read_text(encoding="utf-8"))


def test_german_and_chinese_translations_exist() -> None:
    assert LANGUAGES == ["de_DE", "zh_CN"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_displayed_text_has_a_translation_and_every_translation_is_displayed(
    language: str, shown: set[str]
) -> None:
    keys = set(translations(language))
    assert {"without a translation": shown - keys, "no longer shown": keys - shown} == {
        "without a translation": set(),
        "no longer shown": set(),
    }


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_are_not_empty_and_contain_the_numbers_of_the_english_text(language: str) -> None:
    for text, translated in translations(language).items():
        assert translated.strip() == translated
        assert translated
        assert re.findall(r"\b\d+\b", text) == re.findall(r"\b\d+\b", translated)


ON = {"enabled": True}
LINES = (
    (ON, {}),
    ({**ON, "scale": 1}, {}),
    ({**ON, "scale": 8}, {"width": 4096, "script": "SD upscale"}),
    ({**ON, "skip_views": "0,0.1"}, {"cfg_scale": 1}),
    ({**ON, "scale": 99}, {}),
)
"""DemoFusion's fields and the values of the tab. Together, the cases show many of the notes and warnings."""


@pytest.mark.parametrize(("settings", "tab"), LINES)
@pytest.mark.parametrize("seconds", [None, 8, 300, 9000])
def test_every_text_node_of_the_summary_line_can_be_translated(
    webui: Webui, monkeypatch: pytest.MonkeyPatch, settings: dict, tab: dict, seconds: float | None
) -> None:
    monkeypatch.setattr(line.timing, "seconds", lambda cells: seconds)
    known = translations("de_DE")
    for text in TextNodes(line.describe([settings], TabValues(**tab))).found:
        numbers = re.fullmatch(r"[\d.,x→ e+]+", text)
        # the message about an impossible value contains the value and the allowed values, which are not translated
        assert text in known or numbers or text in (": 99", "a number from 1 to 8")
