"""Stand-in: there are no LoRAs."""

from typing import Any

active: dict[str, Any] = {}
"""The networks that were activated last, for tests."""


def activate(p: Any, extra_network_data: dict[str, Any]) -> None:
    """Records the networks in the prompt, and replaces the previous ones."""
    active.clear()
    active.update(extra_network_data)
