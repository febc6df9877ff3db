"""Compares sets of images with true renderings (see worlds.py): by spectra, and by a Fréchet distance of features.

The features come from a fixed convolution network with random weights, so nothing is downloaded. Random filters react
to orientation, scale, color and their combinations, but not to objects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.quality.metrics import log_spectrum
from bench.quality.pictures import downscale

SIDE = 128
"""Side of the network's input in pixels. The input is a whole image, reduced to this size, or a 1:1 crop."""
CROPS = 8
"""Number of crops of an image."""
KEPT = 20
"""Maximum number of principal components of the features."""
SEED = 20231128

Statistic = Callable[[np.ndarray], float]
"""A function that computes a statistic of some images of a set.

Its argument contains the positions of these images in the set. A position can occur more than once, as in a bootstrap.
"""


def _filters(generator: torch.Generator, outputs: int, inputs: int, size: int) -> Tensor:
    """Returns random filters (outputs, inputs, size, size) of unit length. Their response to a flat image is 0."""
    weight = torch.randn(outputs, inputs, size, size, generator=generator)
    weight = weight - weight.mean((2, 3), keepdim=True)
    return weight / weight.flatten(1).norm(dim=1)[:, None, None, None]


class Network:
    """Three layers of random filters at three scales.

    The features are the means and standard deviations of the colors, and the logarithms of the mean absolute responses
    of every filter.
    """

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(SEED)
        self._weights = [_filters(generator, 24, width, 5) for width in (3, 24, 24)]

    @torch.no_grad()
    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """Computes features (N, F) of images (N, SIDE, SIDE, 3) in 0..1."""
        x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float()
        found = [x.mean((2, 3)), x.std((2, 3))]
        for weight in self._weights:
            x = F.conv2d(x, weight, padding=2).abs()
            found.append(x.mean((2, 3)).add(1e-4).log())
            x = F.avg_pool2d(x, 2)
        return torch.cat(found, 1).numpy().astype(np.float64)


def crops(picture: np.ndarray, index: int) -> np.ndarray:
    """Crops CROPS squares from an image at 1:1, (CROPS, SIDE, SIDE, 3).

    `index` is the position of the image in its set. It determines where the squares are, so the images at this position
    in two sets are cropped in the same places.
    """
    rng = np.random.default_rng((SEED, index))
    tops = rng.integers(0, picture.shape[0] - SIDE + 1, CROPS)
    lefts = rng.integers(0, picture.shape[1] - SIDE + 1, CROPS)
    return np.stack([picture[y : y + SIDE, x : x + SIDE] for y, x in zip(tops, lefts)])


class Summary:
    """The spectra (N, RINGS) of a set of images, and the features of whole images (N, 1, F) and crops (N, CROPS, F)."""

    def __init__(self, pictures: Sequence[np.ndarray], network: Network):
        self.spectra = np.stack([log_spectrum(picture) for picture in pictures])
        self.whole = network(np.stack([downscale(picture, (SIDE, SIDE)) for picture in pictures]))[:, None]
        self.crops = np.stack([network(crops(picture, number)) for number, picture in enumerate(pictures)])


class Truth:
    """Compares sets of images with a set of true renderings. `summary` is the summary of the true renderings."""

    def __init__(self, summary: Summary):
        self._spectra = summary.spectra
        self._whole, self._crops = Frechet(summary.whole), Frechet(summary.crops)

    def statistics(self, summary: Summary) -> dict[str, Statistic]:
        """Returns the statistics that compare another set with the true renderings, by the name of their column."""
        whole, parts = self._whole.whitened(summary.whole), self._crops.whitened(summary.crops)
        return {
            "spectrum": lambda chosen: spectrum_distance(summary.spectra[chosen], self._spectra),
            "frechet_whole": lambda chosen: self._whole.distance(whole[chosen]),
            "frechet_crops": lambda chosen: self._crops.distance(parts[chosen]),
        }


def spectrum_distance(spectra: np.ndarray, true_spectra: np.ndarray) -> float:
    """Computes the root mean square difference between the mean log spectra of two sets, each (N, RINGS).

    If the power differs by a factor of e at every frequency, the result is 1. The first ring, which contains the lowest
    frequencies, is excluded, because it depends on the composition of the image and not on its detail.
    """
    difference = spectra.mean(0) - true_spectra.mean(0)
    return float(np.sqrt((difference[1:] ** 2).mean()))


class Frechet:
    """Computes Fréchet distances from the features (N, S, F) of N true renderings.

    S is the number of samples of a rendering: 1 for the whole image, or CROPS. First, the features are projected to at
    most KEPT principal components of the true renderings. The true renderings then have variance 1 in each of these.
    """

    def __init__(self, features: np.ndarray):
        samples = features.reshape(-1, features.shape[-1])
        self._mean = samples.mean(0)
        values, vectors = np.linalg.eigh(np.cov(samples.T))
        order = np.argsort(values)[::-1][: min(KEPT, len(samples) // 2)]
        self._axes = vectors[:, order] / np.sqrt(values[order])
        self._true = gaussian(self.whitened(features))

    def whitened(self, features: np.ndarray) -> np.ndarray:
        """Projects features (..., F) to (..., K), where K is at most KEPT."""
        return (features - self._mean) @ self._axes

    def distance(self, whitened: np.ndarray) -> float:
        """Computes the squared distance of a set with whitened features (N, S, K) from the true renderings."""
        return frechet(gaussian(whitened), self._true)


def gaussian(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes the mean (K,) and the covariance (K, K) of features (N, S, K)."""
    samples = features.reshape(-1, features.shape[-1])
    return samples.mean(0), np.atleast_2d(np.cov(samples.T, bias=True))


def frechet(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """Computes the squared Fréchet distance between two Gaussians (mean, covariance)."""
    cross = np.sqrt(np.linalg.eigvals(a[1] @ b[1]).real.clip(0)).sum()
    return float(((a[0] - b[0]) ** 2).sum() + np.trace(a[1]) + np.trace(b[1]) - 2 * cross)
