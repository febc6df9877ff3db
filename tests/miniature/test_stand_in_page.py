"""Tests the page of `python try_demofusion.py` as a new user sees it."""

from __future__ import annotations

import re
import urllib.request
from typing import Any

import pytest
from browser import TIMEOUT, Tab, listening, show

pytestmark = pytest.mark.browser


def test_the_page_connects_to_no_other_host(blank: Any, address: str) -> None:
    requested: list[str] = []
    with listening(blank, "request", lambda request: requested.append(request.url)):
        show(blank, address)
        blank.wait_for_load_state("load")
        blank.wait_for_timeout(1000)
    assert requested
    assert [url for url in requested if not url.startswith((address, "data:", "blob:"))] == []
    # for some elements, such as preconnect links, browsers open a connection without a request event. The HTML must
    # therefore contain no `link` or `script` element with an address of another host
    with urllib.request.urlopen(address) as answer:
        html = answer.read().decode()
    assert re.findall(r"<(?:link|script)\b[^>]*https?://[^>]*>", html) == []


def test_words_that_the_model_does_not_know_are_reported(page: Any) -> None:
    tab = Tab(page, "txt2img")
    unknown = page.locator(f"{tab.id('unknown_words')}.prose")
    page.fill(f"{tab.id('prompt')} textarea", "a spaceship on moss, at night")
    unknown.filter(has_text="does not know: spaceship, at, night").wait_for(timeout=TIMEOUT)
    page.fill(f"{tab.id('prompt')} textarea", "a daffodil on moss")
    page.wait_for_function(
        "box => !document.querySelector(box).innerText.trim()",
        arg=f"{tab.id('unknown_words')}.prose",
        timeout=TIMEOUT,
    )
