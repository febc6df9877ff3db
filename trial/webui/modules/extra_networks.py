"""Stand-in: records the extra networks (LoRAs) of a prompt, which have no effect."""

from typing import Any

active: dict[str, Any] = {}
"""The extra networks from the last call of `activate`."""


def activate(p: Any, extra_network_data: dict[str, Any]) -> None:
    """Replaces the networks in `active`."""
    active.clear()
    active.update(extra_network_data)
