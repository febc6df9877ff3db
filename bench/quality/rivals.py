"""Implements other methods from their papers and descriptions. Latents are (B, 4, h, w)."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from bench.quality.denoiser import NATIVE, GuidedModel, Predict
from bench.quality.sampler import Steps, sample
from lib_demofusion.method.residual import VariancePreserving, noised
from lib_demofusion.method.views import view_starts

MIXTURE_VARIANCE = 0.01
"""Variance of the Gaussian weights of a tile, relative to its side squared."""
PADDING = 2
"""Cells around a tile that are denoised with it and discarded. They are an eighth of a tile, in the original a 16th."""


def gaussian_weights(side: int) -> Tensor:
    """Returns the weights (side, side) of a tile in Mixture of Diffusers (Jimenez, arXiv 2302.02412)."""
    offsets = (torch.arange(side) - (side - 1) / 2) / side
    line = torch.exp(-(offsets**2) / (2 * MIXTURE_VARIANCE))
    return line[:, None] * line


def mixture(guided: GuidedModel) -> Predict:
    """Predicts noise as the mean over overlapping native tiles with Gaussian weights, at every step."""
    weights = gaussian_weights(NATIVE)

    def predict(x: Tensor, t: int) -> Tensor:
        places = [(row, column) for row in _starts(x.shape[-2]) for column in _starts(x.shape[-1])]
        tiles = torch.stack([x[..., row : row + NATIVE, column : column + NATIVE] for row, column in places])
        total, norm = torch.zeros_like(x), torch.zeros_like(x[:1, :1])
        for (row, column), eps in zip(places, guided.tiles(tiles, t)):
            area = (..., slice(row, row + NATIVE), slice(column, column + NATIVE))
            total[area] += weights * eps
            norm[area] += weights
        return total / norm

    return predict


def _starts(length: int) -> list[int]:
    return view_starts(length, NATIVE, NATIVE // 2)


def spot(guided: GuidedModel) -> Predict:
    """Predicts noise in native tiles without overlap, on a grid that shifts at every step (arXiv 2407.15507).

    The shift wraps around the borders. It depends only on the timestep, and is the same for every image.
    """

    def predict(x: Tensor, t: int) -> Tensor:
        shift = tuple(np.random.default_rng(t).integers(0, NATIVE, 2).tolist())
        moved = torch.roll(x, shift, (-2, -1))
        rows, columns = x.shape[-2] // NATIVE, x.shape[-1] // NATIVE
        grid = moved.unflatten(-2, (rows, NATIVE)).unflatten(-1, (columns, NATIVE))  # (B, 4, rows, N, columns, N)
        tiles = grid.permute(2, 4, 0, 1, 3, 5).flatten(0, 1)
        eps = guided.tiles(tiles, t).unflatten(0, (rows, columns)).permute(2, 3, 0, 4, 1, 5)
        return torch.roll(eps.reshape(x.shape), tuple(-s for s in shift), (-2, -1))

    return predict


def one_tile_after_another(x: Tensor, noise: Tensor, steps: Steps, guided: GuidedModel) -> Tensor:
    """Adds noise to each tile of the enlarged latents x and denoises it separately, like Ultimate SD Upscale.

    A tile includes PADDING cells around it. Earlier tiles among these are finished already.
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
