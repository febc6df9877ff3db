"""Estimates the memory and the largest tensor of a decoder or encoder, with and without tiles.

`steps` are the layers of the network, `size` is the size of its input, `itemsize` is the number of bytes of one
element, and `tile` is `tiling.Options.tile`. All results are in bytes and apply to one image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lib_demofusion.tiled_vae.layers import Layer, Size, sizes


def whole_bytes(steps: Sequence[Layer], size: Size, itemsize: int) -> int:
    """Estimates the peak memory of the network's own forward pass without tiles, not including the weights.

    Before a convolution, the network holds the main path, the normalised map, the sigmoid of the normalised map, and
    the product of these two. Without a fused kernel, the webui's attention holds the attention matrix and the softmax
    of this matrix (sd_hijack_optimizations.py: sdp_attnblock_forward).
    """
    peak, main = 0, 0
    for step, before in zip(steps, sizes(steps, size)):
        entering, leaving = step.inputs * math.prod(before), step.outputs * math.prod(step.size(before))
        if step.reads == "x":
            main = entering
        if step.kind == "attn":
            peak = max(peak, 6 * entering + 2 * math.prod(before) ** 2)
        elif step.norm is not None:
            peak = max(peak, main + 3 * entering, main + entering + leaving)
        else:
            peak = max(peak, entering + leaving * (2 if step.kind == "up" else 1))
    return peak * itemsize


def part_bytes(steps: Sequence[Layer], size: Size, itemsize: int, tile: int) -> int:
    """Estimates the memory of a tiled run, not including the weights and the stored maps.

    A tiled run holds one tile, a normalised copy of this tile in float32, an activated copy in the dtype of the map,
    and the output of the tile. An attention also holds all keys and values.
    """
    limits = sizes(steps, size)
    cells = min(math.prod(limit) for limit in limits)
    largest = max(step.elements(limit) for step, limit in zip(steps, limits)) / cells
    keys = max((2 * step.elements(limit) for step, limit in zip(steps, limits) if step.kind == "attn"), default=0)
    return int(largest * min(tile**2, cells) * (4 + 3 * itemsize)) + keys * itemsize


def held_bytes(steps: Sequence[Layer], size: Size, itemsize: int) -> int:
    """Returns the total size of the feature maps that a tiled run stores, at the time when this size is largest."""
    peak, main, branch = 0, steps[0].inputs * math.prod(size), 0
    for step, before in zip(steps, sizes(steps, size)):
        leaving = step.outputs * math.prod(step.size(before))
        fresh = 0 if step.adds or step.lazy or step.kind == "attn" else leaving
        peak = max(peak, main + branch + fresh * (2 if step.shortcut else 1))
        if not step.lazy and (step.writes == "x" or step.shortcut):
            main = leaving
        branch = leaving if step.writes == "h" else 0
    return peak * itemsize


def largest_bytes(steps: Sequence[Layer], size: Size, itemsize: int) -> int:
    """Returns the size of the largest feature map in the network's own forward pass."""
    return max(step.elements(limit) for step, limit in zip(steps, sizes(steps, size))) * itemsize


def largest_part_bytes(steps: Sequence[Layer], size: Size, itemsize: int, tile: int) -> int:
    """Returns the size of the largest tensor that a tiled run allocates, not including the stored maps.

    This tensor is either one tile in float32 or the keys of the attention.
    """
    limits = sizes(steps, size)
    cells = min(math.prod(limit) for limit in limits)
    keys = max((step.elements(limit) for step, limit in zip(steps, limits) if step.kind == "attn"), default=0)
    return max(largest_bytes(steps, size, 4) * min(tile**2, cells) // cells, keys * itemsize)
