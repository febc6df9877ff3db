"""Stand-in: UNets that extensions put in the place of the checkpoint's own."""

from typing import Any

current_unet: Any = None
"""None while the checkpoint's own runs."""
