"""Tests a webui that rounds the size of the base image. The infotext contains the requested and the rounded size."""

from __future__ import annotations

from typing import Any

import pytest
from in_process import BASE, Webui
from modules import processing

ON = {"enabled": True, "scale": 2}


def test_a_size_that_the_webui_rounds_is_noted(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forge Neo rounds width and height to multiples of 64 between the hooks `before_process` and `process`."""
    before = processing.StableDiffusionProcessing.setup_prompts

    def rounding(p: Any) -> None:
        p.width = p.height = BASE
        before(p)

    monkeypatch.setattr(processing.StableDiffusionProcessing, "setup_prompts", rounding)
    assert "instead of" not in webui.job(ON).infotexts[0]
    text = webui.job(ON, width=BASE - 8).infotexts[0]
    assert f"creates a base image of {BASE}x{BASE} instead of {BASE - 8}x{BASE}" in text
