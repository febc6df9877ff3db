"""Whether this computer has the room for a picture, as far as that is known before it is made."""

from __future__ import annotations

import math
from typing import Any

import torch
from modules import devices

from lib_demofusion.host.common.memory import available_bytes
from lib_demofusion.host.pictures.vae import DEVICE_SHARE, choose_shelf, free_bytes
from lib_demofusion.method.views import Size
from lib_demofusion.tiled_vae.steps import decoder_steps

BYTES_A_PIXEL = 4 * 3 * 4
"""Of a batch when it is decoded: the host holds its pictures, their stack and two copies (modules/processing.py,
process_images_inner), in three channels of 32 bits."""


def lacks_memory(pixels: Size, batch: int) -> bool:
    """Returns whether pictures of height and width `pixels` need more of the computer's memory than is free."""
    return batch * BYTES_A_PIXEL * math.prod(pixels) > available_bytes()


def lacks_room_to_decode(model: Any, size: Size) -> bool:
    """Returns whether what decoding a latent of `size` holds fits neither the device, nor the memory, nor the disk.

    False where no model is loaded, or its decoder is left to the webui.
    """
    first_stage = getattr(model, "first_stage_model", None)
    try:
        steps = decoder_steps(getattr(first_stage, "decoder", None))
    except (AttributeError, ValueError):
        return False
    room = int(free_bytes(devices.device) * DEVICE_SHARE)
    try:
        choose_shelf(steps, size, torch.empty(0, dtype=devices.dtype_vae), room)
    except MemoryError:
        return True
    return False
