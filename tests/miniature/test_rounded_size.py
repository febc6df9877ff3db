"""Tests the note in the infotext that appears if the webui rounds the requested size of the base image."""

from __future__ import annotations

from typing import Any

import pytest
from in_process import BASE, Webui
from modules import processing

ON = {"enabled": True, "scale": 2}


def test_a_note_names_the_requested_and_the_rounded_size(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forge Neo rounds width and height to multiples of 64 between the hooks `before_process` and `process`."""
    before = processing.StableDiffusionProcessing.setup_prompts

    def rounding(p: Any) -> None:
        p.width = p.height = BASE
        before(p)

    monkeypatch.setattr(processing.StableDiffusionProcessing, "setup_prompts", rounding)
    assert "instead of" not in webui.job(ON).infotexts[0]
    text = webui.job(ON, width=BASE - 8).infotexts[0]
    assert f"creates a base image of {BASE}x{BASE} instead of {BASE - 8}x{BASE}" in text
