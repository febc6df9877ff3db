"""Computes the largest tensor that an autoencoder allocates; some devices limit the size of one tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lib_demofusion.tiled_vae.steps import Size, Step, sizes


def largest_bytes(steps: Sequence[Step], size: Size, itemsize: int) -> int:
    """Returns the bytes of the largest feature map in the network's own forward pass, for an input of `size`."""
    return max(step.elements(limit) for step, limit in zip(steps, sizes(steps, size))) * itemsize


def largest_part_bytes(steps: Sequence[Step], size: Size, itemsize: int, tile: int) -> int:
    """Returns the bytes of the largest tensor that tiled_vae allocates, without the maps that it holds.

    This is either one tile in 32 bits or the keys of the attention.
    """
    limits = sizes(steps, size)
    cells = min(math.prod(limit) for limit in limits)
    keys = max((step.elements(limit) for step, limit in zip(steps, limits) if step.kind == "attn"), default=0)
    return max(largest_bytes(steps, size, 4) * min(tile**2, cells) // cells, keys * itemsize)
