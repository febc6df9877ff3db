"""Tests that the picture of the panel in README is up to date."""

from __future__ import annotations

import json
from typing import Any

import pytest
from panel_picture import FILE, KEY, shown_panel, texts
from PIL import Image

pytestmark = pytest.mark.browser


def test_the_picture_of_the_panel_shows_the_current_texts(blank: Any, address: str) -> None:
    """If the texts differ, make the picture again: python tests/miniature/panel_picture.py URL.

    URL is the address of a server that tests/miniature/serve_tiny.py has just started.
    """
    tab = shown_panel(blank, address)
    with Image.open(FILE) as picture:
        assert json.loads(picture.text[KEY]) == texts(tab)  # type: ignore[attr-defined]
    # the picture must show no expected time, because the time depends on the machine and the model
    assert "about" not in tab.wait_for_line("times the time of the base image")
