"""A Fréchet distance on features that need no download: a fixed random convolution network, whitened by true pictures.

Random filters see orientation, scale, colour and their conjunctions; they know nothing of objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 128
"""Side in pixels of what the network looks at: a whole picture reduced to it, or a 1:1 crop."""
CROPS = 8
"""Crops of a picture, at places drawn from its number."""
KEPT = 20
"""Principal components of the true pictures that are compared."""
SEED = 20231128


def _filters(generator: torch.Generator, outputs: int, inputs: int, size: int) -> Tensor:
    """Random filters (outputs, inputs, size, size) without response to flat input, of unit length."""
    weight = torch.randn(outputs, inputs, size, size, generator=generator)
    weight = weight - weight.mean((2, 3), keepdim=True)
    return weight / weight.flatten(1).norm(dim=1)[:, None, None, None]


class Network:
    """Three layers of random filters at three scales; mean responses and mean colours are the features."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(SEED)
        self._weights = [_filters(generator, 24, width, 5) for width in (3, 24, 24)]

    @torch.no_grad()
    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """Features (N, F) of pictures (N, SIDE, SIDE, 3) in 0..1."""
        x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float()
        found = [x.mean((2, 3)), x.std((2, 3))]
        for weight in self._weights:
            x = F.conv2d(x, weight, padding=2).abs()
            found.append(x.mean((2, 3)).add(1e-4).log())
            x = F.avg_pool2d(x, 2)
        return torch.cat(found, 1).numpy().astype(np.float64)


def crops(picture: np.ndarray, index: int) -> np.ndarray:
    """1:1 crops (CROPS, SIDE, SIDE, 3) of picture number `index`, at the same places in every set."""
    rng = np.random.default_rng((SEED, index))
    tops = rng.integers(0, picture.shape[0] - SIDE + 1, CROPS)
    lefts = rng.integers(0, picture.shape[1] - SIDE + 1, CROPS)
    return np.stack([picture[y : y + SIDE, x : x + SIDE] for y, x in zip(tops, lefts)])


@dataclass(frozen=True)
class Whitening:
    """Projection to the principal components of a set of true pictures, each with variance one."""

    mean: np.ndarray
    axes: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Whitened features (..., KEPT)."""
        return (features - self.mean) @ self.axes


def whitening(features: np.ndarray) -> Whitening:
    """The whitening of features (N, F)."""
    mean = features.mean(0)
    values, vectors = np.linalg.eigh(np.cov(features.T))
    kept = min(KEPT, len(features) // 2)
    order = np.argsort(values)[::-1][:kept]
    return Whitening(mean, vectors[:, order] / np.sqrt(values[order]))


@dataclass(frozen=True)
class Moments:
    """Mean features (N, K) and mean outer products (N, K, K) of N pictures, which resampling averages."""

    first: np.ndarray
    second: np.ndarray

    def gaussian(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean (K,) and covariance (K, K) of the pictures with these numbers."""
        mean = self.first[chosen].mean(0)
        return mean, self.second[chosen].mean(0) - np.outer(mean, mean)


def moments(features: np.ndarray) -> Moments:
    """The moments of whitened features (N, samples of a picture, K)."""
    return Moments(features.mean(1), np.einsum("nsi,nsj->nij", features, features) / features.shape[1])


def frechet(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """Squared Fréchet distance of two Gaussians (mean, covariance)."""
    values, vectors = np.linalg.eigh(b[1])
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ a[1] @ root).clip(0)).sum()
    return float(((a[0] - b[0]) ** 2).sum() + np.trace(a[1]) + np.trace(b[1]) - 2 * cross)
