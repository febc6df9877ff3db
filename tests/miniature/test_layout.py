"""Tests the panel in windows of many widths: no control is cut off or covered, and every label is on one line.

With --webui-url URL, these tests use the panel of a running webui. Otherwise they use that of the stand-in
(trial/webui), which replaces the webui in tests.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from browser import Tab, open_panel, screenshot
from test_browser import SCREENSHOTS

pytestmark = pytest.mark.browser

LOCALIZATIONS = Path(__file__).resolve().parents[2] / "localizations"
WITH_SCREENSHOT = (360, 400, 500, 700, 900, 960, 1024, 1100, 1280, 1600)
"""The widths of the window, in pixels, at which the tests save a screenshot."""
WIDTHS = sorted({*range(360, 1601, 20), *WITH_SCREENSHOT})

TRANSLATE = """words => {
    const nodes = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (nodes.nextNode()) {
        const translated = words[nodes.currentNode.textContent.trim()];
        if (translated) nodes.currentNode.textContent = translated;
    }
}"""
"""JavaScript that translates every text node whose whole text is in `words`, as the webui's localization.js does."""


@pytest.fixture(scope="module")
def address(request: pytest.FixtureRequest) -> str:
    """Returns the address in --webui-url, or the address of the stand-in's page."""
    url = request.config.getoption("--webui-url")
    return url or request.getfixturevalue("served")[0]


@pytest.mark.parametrize("name", ["txt2img", "img2img"])
def test_no_control_is_cut_off_or_covered(blank: Any, address: str, name: str) -> None:
    tab = open_panel(blank, f"{address}?__theme=light", name=name)
    assert problems_with_screenshots(tab, WIDTHS, f"{name}-light") == []


def test_no_control_is_cut_off_or_covered_in_the_dark_theme(blank: Any, address: str) -> None:
    tab = open_panel(blank, f"{address}?__theme=dark")
    assert problems_with_screenshots(tab, WITH_SCREENSHOT, "txt2img-dark") == []


def problems_with_screenshots(tab: Tab, widths: Iterable[int], name: str) -> list[str]:
    """Returns the layout problems in windows of these widths. Saves a screenshot if the width is in WITH_SCREENSHOT."""
    problems = []
    for width in widths:
        problems += tab.layout_problems(width)
        if width in WITH_SCREENSHOT:
            screenshot(tab.page, SCREENSHOTS, f"{name}-{width}")
    return problems


@pytest.mark.parametrize("language", ["de_DE", "zh_CN"])
def test_translated_texts_are_not_cut_off_or_covered(blank: Any, address: str, language: str) -> None:
    """The longest German labels are longer than the longest English labels."""
    tab = open_panel(blank, address, name="img2img")
    tab.page.evaluate(TRANSLATE, json.loads((LOCALIZATIONS / f"{language}.json").read_text(encoding="utf-8")))
    problems = [problem for width in WIDTHS for problem in tab.layout_problems(width)]
    # a translated label may need two lines
    assert [problem for problem in problems if "lines" not in problem] == []


def test_layout_problems_finds_controls_that_are_cut_off_or_overlap(blank: Any, address: str) -> None:
    tab = open_panel(blank, address)
    tab.page.add_style_tag(content=f"{tab.panel}_width {{ margin-left: -40px; }}")
    assert "scale INPUT number overlaps width INPUT range" in "\n".join(tab.layout_problems(1280))
    tab.page.add_style_tag(content=f"{tab.panel}_scale {{ height: 30px; }}")
    assert "scale INPUT number is outside" in "\n".join(tab.layout_problems(1280))
