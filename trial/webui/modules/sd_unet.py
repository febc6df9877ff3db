"""Stand-in: the UNet that an extension uses in place of the checkpoint's UNet."""

from typing import Any

current_unet: Any = None
"""None, because the stand-in uses the checkpoint's UNet."""
