"""Stand-in: there are no LoRAs here."""

from typing import Any

active: dict[str, Any] = {}
"""What was activated last, for the tests."""


def activate(p: Any, extra_network_data: dict[str, Any]) -> None:
    """Notes what the prompt names, in the place of what was active before."""
    active.clear()
    active.update(extra_network_data)
