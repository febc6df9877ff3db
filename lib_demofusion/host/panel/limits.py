"""Estimates before a run whether this computer has enough memory and disk space for an image."""

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
"""Memory per pixel of a decoded batch. The host holds the images, their stack and two copies, each with three channels
of 32 bits (modules/processing.py, process_images_inner)."""


def lacks_memory(pixels: Size, batch: int) -> bool:
    """Returns whether a batch of images of size `pixels` (height, width) needs more than the computer's free memory."""
    return batch * BYTES_A_PIXEL * math.prod(pixels) > available_bytes()


def lacks_room_to_decode(model: Any, size: Size) -> bool:
    """Returns whether decoding a latent of `size` cells fits neither on the device, nor in memory, nor on the disk.

    Returns False if no model is loaded, or if the webui decodes with its own decoder.
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
