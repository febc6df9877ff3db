"""Tests that the panel can be used without a mouse.

The Tab key reaches every control in reading order, the focus is visible, and keys operate the controls.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from browser import TIMEOUT, Tab, contrast, listening, show

from lib_demofusion.host.panel.build import CONTROLS, UNSEEN
from lib_demofusion.settings.presets import DEFAULT_PRESET

pytestmark = pytest.mark.browser

SCRIPT = Path(__file__).resolve().parents[2] / "javascript" / "demofusion.js"
OTHERS = {"preset_name", "preset_save", "preset_delete", "advanced"}
"""Elements of the panel that the Tab key reaches in addition to the controls of the fields."""
SHOWN = set(CONTROLS) - set(UNSEEN)
"""The fields whose controls are visible in the panel of at least one tab."""


def opened(page: Any, name: str) -> Tab:
    """Opens the panel of tab `name`, and its section "Advanced", with keys. `page.focus` moves the focus there."""
    tab = Tab(page, name)
    page.focus(f"{tab.panel}_enabled-visible-checkbox")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{tab.panel}_enabled > .label-wrap.open", timeout=TIMEOUT)
    page.focus(f"{tab.panel}_advanced > .label-wrap [role=button]")
    page.keyboard.press("Space")
    page.locator(f"{tab.panel}_cosine_scale_2").wait_for(timeout=TIMEOUT)
    return tab


@pytest.mark.parametrize("name", ["txt2img", "img2img"])
def test_the_tab_key_reaches_every_control_in_reading_order(page: Any, name: str) -> None:
    tab = opened(page, name)
    assert tab.enabled
    stops = tab.stops()
    hidden = {"img2img_first"} if name == "txt2img" else set()
    assert {stop["block"] for stop in stops} == SHOWN - hidden | OTHERS
    assert all(stop["visible"] for stop in stops)
    # the next control is more than 20 pixels below, or further right in the same row. In a row, the top of the next
    # control may be up to 60 pixels higher
    for one, other in pairwise(stops):
        assert other["top"] > one["top"] - 60
        assert other["top"] > one["top"] + 20 or other["left"] >= one["left"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_focus_is_visible(blank: Any, address: str, scheme: str) -> None:
    show(blank, f"{address}?__theme={scheme}")
    # an outline of 2 pixels with a contrast of at least 3, as in WCAG 2.2, criterion 2.4.13
    for stop in opened(blank, "txt2img").stops():
        assert stop["width"] >= 2, stop
        assert contrast(stop["color"], stop["background"]) >= 3, stop


def test_the_header_of_the_panel_reports_whether_the_panel_is_open(page: Any) -> None:
    tab = opened(page, "txt2img")
    header = page.locator(f"{tab.panel}_enabled > .label-wrap [role=button]")
    assert (header.get_attribute("aria-label"), header.get_attribute("aria-expanded")) == ("DemoFusion", "true")
    header.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{tab.panel}_enabled > .label-wrap:not(.open)", timeout=TIMEOUT)
    page.wait_for_function("box => !document.querySelector(box).checked", arg=f"{tab.panel}_enabled-checkbox input")
    assert header.get_attribute("aria-expanded") == "false"


def test_a_key_opens_the_panel_if_the_javascript_is_loaded_twice(page: Any) -> None:
    """If the extension is installed twice, the webui runs the JavaScript of both copies.

    Only one copy may install a listener. With two listeners, a key would open the panel and close it again at once.
    """
    page.add_script_tag(path=str(SCRIPT))
    page.evaluate("uiLoadedCallbacks.at(-1)()")
    opened(page, "txt2img")


def test_the_space_bar_ticks_the_checkbox(page: Any) -> None:
    tab = Tab(page, "txt2img")
    page.focus(f"{tab.panel}_enabled-visible-checkbox")
    page.keyboard.press("Space")
    page.wait_for_function("box => document.querySelector(box).checked", arg=f"{tab.panel}_enabled-checkbox input")


def test_a_preset_is_saved_and_deleted_with_the_keyboard(page: Any) -> None:
    tab = opened(page, "txt2img")
    page.focus(f"{tab.panel}_preset_name textarea, {tab.panel}_preset_name input")
    page.keyboard.type("Typed")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    tab.wait_for_message("Saved: Typed")
    tab.wait_for_preset("Typed")
    page.keyboard.press("Tab")
    with listening(page, "dialog", lambda dialog: dialog.accept()):
        page.keyboard.press("Enter")
        tab.wait_for_message("Deleted: Typed")
    tab.wait_for_preset(DEFAULT_PRESET)
