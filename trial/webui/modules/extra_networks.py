"""Stand-in: records the extra networks (LoRAs) of a prompt, which have no effect."""

from typing import Any

active: dict[str, Any] = {}
"""The networks that are active."""


def activate(p: Any, extra_network_data: dict[str, Any]) -> None:
    """Replaces the active networks."""
    active.clear()
    active.update(extra_network_data)
