"""Checks for features of the webui. It checks for the features themselves, not for versions."""

from __future__ import annotations

from modules import scripts

UNSUPPORTED = "DemoFusion Hires needs webui 1.8 or newer: this one has no `post_sample` hook, so the panel is disabled"


def supported() -> bool:
    """Returns whether the host has the hook in which the stages run (webui 1.8 and newer)."""
    return hasattr(scripts.Script, "post_sample")
