"""Tests the page of `python try_demofusion.py` as a new user sees it."""

from __future__ import annotations

import re
import urllib.request
from typing import Any

import pytest
from browser import SECONDS, Tab

pytestmark = pytest.mark.browser


def test_the_page_connects_to_no_other_host(chromium: Any, address: str) -> None:
    page = chromium.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address, wait_until="load")
    page.wait_for_selector("#txt2img_generate", timeout=SECONDS)
    page.wait_for_timeout(1000)
    page.close()
    assert asked
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    # a browser connects to these addresses before it requests anything
    with urllib.request.urlopen(address) as answer:
        html = answer.read().decode()
    assert re.findall(r"<(?:link|script)\b[^>]*https?://[^>]*>", html) == []


def test_unknown_words_are_reported(page: Any) -> None:
    tab = Tab(page, "txt2img")
    unknown = page.locator(f"{tab.id('unknown_words')}.prose")
    page.fill(f"{tab.id('prompt')} textarea", "a spaceship on moss, at night")
    unknown.filter(has_text="does not know: spaceship, at, night").wait_for(timeout=SECONDS)
    page.fill(f"{tab.id('prompt')} textarea", "a daffodil on moss")
    page.wait_for_function(
        "box => !document.querySelector(box).innerText.trim()",
        arg=f"{tab.id('unknown_words')}.prose",
        timeout=SECONDS,
    )
