"""Computes a Fréchet distance on features of a fixed random convolution network.

The features are whitened with the statistics of true renderings. This needs no download.
Random filters react to orientation, scale, colour and their combinations, but not to objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 128
"""Side of the network's input in pixels. The input is a whole image, reduced to this size, or a 1:1 crop."""
CROPS = 8
"""Number of crops of an image. The image's number determines their positions."""
KEPT = 20
"""Maximum number of principal components of the true renderings."""
SEED = 20231128


def _filters(generator: torch.Generator, outputs: int, inputs: int, size: int) -> Tensor:
    """Returns random filters (outputs, inputs, size, size) of unit length that do not react to flat input."""
    weight = torch.randn(outputs, inputs, size, size, generator=generator)
    weight = weight - weight.mean((2, 3), keepdim=True)
    return weight / weight.flatten(1).norm(dim=1)[:, None, None, None]


class Network:
    """Three layers of random filters at three scales.

    The features are the means and deviations of the colours, and the logarithms of the mean absolute responses.
    """

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(SEED)
        self._weights = [_filters(generator, 24, width, 5) for width in (3, 24, 24)]

    @torch.no_grad()
    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """Returns features (N, F) of images (N, SIDE, SIDE, 3) in 0..1."""
        x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float()
        found = [x.mean((2, 3)), x.std((2, 3))]
        for weight in self._weights:
            x = F.conv2d(x, weight, padding=2).abs()
            found.append(x.mean((2, 3)).add(1e-4).log())
            x = F.avg_pool2d(x, 2)
        return torch.cat(found, 1).numpy().astype(np.float64)


def crops(picture: np.ndarray, index: int) -> np.ndarray:
    """Returns 1:1 crops (CROPS, SIDE, SIDE, 3) of image number `index`, at the same positions in every set."""
    rng = np.random.default_rng((SEED, index))
    tops = rng.integers(0, picture.shape[0] - SIDE + 1, CROPS)
    lefts = rng.integers(0, picture.shape[1] - SIDE + 1, CROPS)
    return np.stack([picture[y : y + SIDE, x : x + SIDE] for y, x in zip(tops, lefts)])


@dataclass(frozen=True)
class Whitening:
    """Projects features to the principal components of a set of true renderings, each with variance one."""

    mean: np.ndarray
    axes: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Returns whitened features (..., K), where K is at most KEPT."""
        return (features - self.mean) @ self.axes


def whitening(features: np.ndarray) -> Whitening:
    """Computes the whitening from features (N, F)."""
    mean = features.mean(0)
    values, vectors = np.linalg.eigh(np.cov(features.T))
    kept = min(KEPT, len(features) // 2)
    order = np.argsort(values)[::-1][:kept]
    return Whitening(mean, vectors[:, order] / np.sqrt(values[order]))


@dataclass(frozen=True)
class Moments:
    """Mean features (N, K) and mean outer products (N, K, K) of N images.

    A bootstrap sample averages those of the chosen images.
    """

    first: np.ndarray
    second: np.ndarray

    def gaussian(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean (K,) and covariance (K, K) of the images with these numbers."""
        mean = self.first[chosen].mean(0)
        return mean, self.second[chosen].mean(0) - np.outer(mean, mean)


def moments(features: np.ndarray) -> Moments:
    """Computes the moments of whitened features (N, samples per image, K)."""
    return Moments(features.mean(1), np.einsum("nsi,nsj->nij", features, features) / features.shape[1])


def frechet(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """Computes the squared Fréchet distance of two Gaussians (mean, covariance)."""
    values, vectors = np.linalg.eigh(b[1])
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ a[1] @ root).clip(0)).sum()
    return float(((a[0] - b[0]) ** 2).sum() + np.trace(a[1]) + np.trace(b[1]) - 2 * cross)
