"""Stand-in: the UNet with which an extension has replaced the checkpoint's UNet."""

from typing import Any

current_unet: Any = None
"""None, because the stand-in uses the checkpoint's UNet."""
