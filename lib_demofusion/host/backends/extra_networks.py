"""Activates the extra networks, such as LoRAs, of the prompt that the stages use."""

from __future__ import annotations

from typing import Any

from modules import devices, extra_networks


def activate(p: Any) -> None:
    """Activates the networks of the main prompt, as the webui does before the base pass."""
    if not p.disable_extra_networks:
        with devices.autocast():
            extra_networks.activate(p, p.extra_network_data)


def activate_after_hires_pass(p: Any) -> None:
    """Activates the networks of the main prompt if the prompt of the hires pass contains other networks.

    The stages use the main prompt. After the hires pass, the webui leaves the networks of the hires prompt active.
    """
    if getattr(p, "enable_hr", False) and getattr(p, "hr_extra_network_data", None) != p.extra_network_data:
        activate(p)
