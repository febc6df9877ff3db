"""Stand-in: UNets with which extensions replace the checkpoint's own."""

from typing import Any

current_unet: Any = None
"""None while the checkpoint's own UNet is in use."""
