"""Tests the page in every kind of webui. See test_hosts.py for the command.

test_page.py contains further tests of the page, for AUTOMATIC1111's webui only.
"""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from miniature.browser import TIMEOUT, Tab
from webui.conftest import Webui
from webui.test_hosts import real_layout
from webui.test_page import chromium, page

__all__ = ["chromium", "page", "real_layout"]

pytestmark = [pytest.mark.webui, pytest.mark.browser, pytest.mark.slow]

QUIET = 3
"""The tests treat the page as at rest if the page has sent no POST request for this number of seconds."""


def wait_for_rest(page: Any) -> None:
    """Waits until the page has sent no POST request for QUIET seconds. Fails the test if the requests do not stop."""
    sent = [time.monotonic()]

    def note(request: Any) -> None:
        if request.method == "POST":
            sent.append(time.monotonic())

    page.on("request", note)
    deadline = time.monotonic() + TIMEOUT / 1000
    while time.monotonic() - sent[-1] < QUIET:
        if time.monotonic() > deadline:
            pytest.fail(f"the page has sent {len(sent) - 1} requests in {TIMEOUT // 1000} seconds and does not stop")
        page.wait_for_timeout(200)
    page.remove_listener("request", note)


@pytest.mark.parametrize("name", ["txt2img", "img2img"])
def test_the_summary_line_is_updated_and_stops_updating(webui: Webui, page: Any, name: str) -> None:
    """Endless updates would make the line unreadable, because gradio grays out a component that waits for an update."""
    tab = Tab(page, name)
    tab.open_panel()
    wait_for_rest(page)
    for width, sizes in ((256, "256x320 → 512x640"), (320, "320x320 → 640x640")):
        tab.number(tab.id("width"), width)
        tab.number(tab.id("height"), 320)
        tab.wait_for_line(sizes)
    tab.number(f"{tab.panel}_scale", 3)
    tab.wait_for_line("960x960")
    wait_for_rest(page)
    assert page.locator(f"{tab.panel}_enabled .pending").count() == 0


def test_the_summary_line_includes_the_pass_of_inpainting(webui: Webui, page: Any) -> None:
    """If the upload has a mask, the webui redraws it, so the run costs one base image more at a strength near 1."""
    tab = Tab(page, "img2img")
    tab.open_panel()
    tab.number(tab.id("denoising_strength"), 1)
    wait_for_rest(page)
    before = cost(page, tab)
    for name, more in (("Inpaint", 1), ("img2img", 0), ("Inpaint upload", 1), ("Sketch", 0)):
        choice = page.locator("#mode_img2img button").filter(has_text=re.compile(f"^\\s*{name}\\s*$"))
        choice.first.click(timeout=TIMEOUT)
        wait_for_rest(page)
        assert cost(page, tab) == pytest.approx(before + more, rel=0.01)


def cost(page: Any, tab: Tab) -> float:
    """Returns the cost in the summary line, in base images."""
    found = re.search(r"([\d.]+) times the time", page.locator(f"{tab.panel}_line").first.inner_text())
    assert found
    return float(found[1])


COUNT = """() => {
    window.changes = {};
    document.addEventListener("gradio", ({detail: {event, id}}) => {
        if (event === "change") window.changes[id] = (window.changes[id] || 0) + 1;
    }, true);
}"""
"""JavaScript that counts the change events of each component in `window.changes`. Works only in gradio 4."""


def test_a_page_at_rest_triggers_no_events(webui: Webui, page: Any) -> None:
    """If two change events triggered each other endlessly, the page would send no request, but keep a core busy."""
    if page.evaluate("window.gradio_config.version").startswith("3."):
        pytest.skip("gradio 3 does not report events to the document, so this test cannot count events")
    Tab(page, "txt2img").open_panel()
    wait_for_rest(page)
    page.evaluate(COUNT)
    page.wait_for_timeout(1000 * QUIET)
    assert page.evaluate("window.changes") == {}


@pytest.mark.parametrize("name", ["txt2img", "img2img"])
def test_no_control_is_cut_off_or_covered(webui: Webui, page: Any, name: str) -> None:
    tab = Tab(page, name)
    tab.open_panel()
    wait_for_rest(page)
    problems = []
    for width in range(360, 1601, 20):
        page.set_viewport_size({"width": width, "height": 1000})
        # the webui sets the widths of its two columns 100 ms after the last change (javascript/resizeHandle.js)
        page.wait_for_timeout(200)
        problems += tab.layout_problems(width)
    assert problems == []
