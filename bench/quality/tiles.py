"""Implements img2img in tiles, like Ultimate SD Upscale. Latents are (B, 4, h, w)."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from bench.quality.denoiser import NATIVE, GuidedModel
from bench.quality.sampler import Steps, sample
from lib_demofusion.method.residual import VariancePreserving, noised

PADDING = 2
"""Cells around a tile that are denoised with it and discarded: an eighth of a tile, and a sixteenth in the original."""


def one_tile_after_another(x: Tensor, noise: Tensor, steps: Steps, guided: GuidedModel) -> Tensor:
    """Adds noise to each tile of the enlarged latents x and denoises it separately, like Ultimate SD Upscale.

    Each tile is denoised with PADDING cells around it. In these cells, earlier tiles are already finished.
    """
    x, space = x.clone(), VariancePreserving(steps.alphas)
    for top, bottom in pairwise(range(0, x.shape[-2] + 1, NATIVE)):
        for left, right in pairwise(range(0, x.shape[-1] + 1, NATIVE)):
            rows, columns = _padded(top, bottom, x.shape[-2]), _padded(left, right, x.shape[-1])
            area = (..., slice(*rows), slice(*columns))
            start = noised(x[area], noise[area], torch.tensor(float(steps.times[0])), space)
            made = sample(start, steps, guided.whole)
            inner = (..., slice(top - rows[0], bottom - rows[0]), slice(left - columns[0], right - columns[0]))
            x[..., top:bottom, left:right] = made[inner]
    return x


def _padded(first: int, last: int, length: int) -> tuple[int, int]:
    """Returns the range with padding, moved inside. Its length is constant, so that the network can halve it twice."""
    size = min(4 * math.ceil((last - first + 2 * PADDING) / 4), length)
    start = min(max(first - PADDING, 0), length - size)
    return start, start + size
