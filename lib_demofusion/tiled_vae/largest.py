"""The largest tensors that an autoencoder makes, for devices that have none of more than so many bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lib_demofusion.tiled_vae.steps import Size, Step, sizes


def largest_bytes(steps: Sequence[Step], size: Size, itemsize: int) -> int:
    """Returns the size of the largest map of the network's own forward, input `size`."""
    return max(step.elements(limit) for step, limit in zip(steps, sizes(steps, size))) * itemsize


def largest_part_bytes(steps: Sequence[Step], size: Size, itemsize: int, tile: int) -> int:
    """Returns the size of the largest tensor of tiled_vae beside the maps it holds: a part in 32 bits, or all keys."""
    limits = sizes(steps, size)
    cells = min(math.prod(limit) for limit in limits)
    keys = max((step.elements(limit) for step, limit in zip(steps, limits) if step.kind == "attn"), default=0)
    return max(largest_bytes(steps, size, 4) * min(tile**2, cells) // cells, keys * itemsize)
