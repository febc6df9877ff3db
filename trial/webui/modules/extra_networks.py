"""Stand-in: there are no LoRAs here."""

from typing import Any


def activate(p: Any, extra_network_data: dict[str, Any]) -> None:
    """Would load what the prompt names."""
