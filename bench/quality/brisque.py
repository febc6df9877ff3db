"""Computes BRISQUE (Mittal, Moorthy and Bovik, 2012), which estimates naturalness from local contrast.

The trained regression comes from the PyPI package brisque. This module reads the files of the installed package. It
does not run the package's code, which needs OpenCV and libsvm.
"""

from __future__ import annotations

import importlib.util
import pickle
import re
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from scipy import ndimage, special

GREY = np.array([0.2125, 0.7154, 0.0721])
STD, RADIUS = 7 / 6, 3
"""Standard deviation and radius of the Gaussian blur in `normalised`, in pixels."""
CONTRAST_FLOOR = 1 / 255
HALVING = np.array([-0.09375, 0.59375, 0.59375, -0.09375])
"""Weights of four adjacent pixels, for a cubic interpolation (a = -0.75) halfway between the middle two pixels."""
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Offsets (down, across) from a pixel to four neighbours. Their values are multiplied by the value of the pixel."""


def brisque(picture: np.ndarray) -> float | None:
    """Returns the score of an image (H, W, 3) with values in 0..1. A lower score is better.

    Returns None if the package brisque is not installed.
    """
    model = _model()
    return None if model is None else model(features(picture))


def features(picture: np.ndarray) -> np.ndarray:
    """Computes 18 features at full size and 18 at half size, (36,). The sides of the image must be even."""
    grey = picture.astype(np.float64) @ GREY
    half = grey
    for axis in (0, 1):
        half = ndimage.correlate1d(half, HALVING, axis, mode="nearest", origin=-1)
    return np.concatenate([_features(grey), _features(half[::2, ::2])])


def _features(grey: np.ndarray) -> np.ndarray:
    """Computes 18 features from the normalised brightness: the parameters of five fitted distributions.

    One distribution fits the values of the pixels. Each of the other four fits the products of neighbouring pixels.
    """
    values = normalised(grey)
    shape, _, left, right = asymmetric_fit(values)
    found = [shape, (left**2 + right**2) / 2]
    height, width = values.shape
    for down, across in NEIGHBOURS:
        first = values[: height - down, max(-across, 0) : width - max(across, 0)]
        second = values[down:, max(across, 0) : width + min(across, 0)]
        shape, mean, left, right = asymmetric_fit(first * second)
        found += [shape, mean, left**2, right**2]
    return np.array(found)


def normalised(grey: np.ndarray) -> np.ndarray:
    """Subtracts the local mean of the brightness. Divides by the local standard deviation plus CONTRAST_FLOOR."""
    blurred = partial(ndimage.gaussian_filter, sigma=STD, radius=RADIUS, mode="constant")
    mean = blurred(grey)
    return (grey - mean) / (np.sqrt(np.abs(mean**2 - blurred(grey**2))) + CONTRAST_FLOOR)


def _ratio(shape: np.ndarray) -> np.ndarray:
    """Computes E(|x|)^2 / E(x^2) of a generalised Gaussian from its shape. The result increases with the shape."""
    a, b, c = (special.gammaln(n / shape) for n in (1, 2, 3))
    return np.exp(2 * b - a - c)


SHAPES = np.linspace(0.05, 10.0, 20000)
"""The candidate shapes of a generalised Gaussian."""
RATIOS = _ratio(SHAPES)


def asymmetric_fit(x: np.ndarray) -> tuple[float, float, float, float]:
    """Fits an asymmetric generalised Gaussian to x. Returns shape, mean, RMS of negative values, RMS of all others."""
    left, right = (float(np.sqrt((side**2).mean())) if side.size else 0.0 for side in (x[x < 0], x[x >= 0]))
    if min(left, right) <= 0.0:
        return float(SHAPES[0]), 0.0, left, right
    skew = left / right
    found = np.abs(x).mean() ** 2 / (x**2).mean() * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    shape = float(np.interp(found, RATIOS, SHAPES))
    spread = np.sqrt(special.gamma(1 / shape) / special.gamma(3 / shape))
    mean = (right - left) * spread * special.gamma(2 / shape) / special.gamma(1 / shape)
    return shape, float(mean), left, right


class _Model:
    """A support vector regression with a radial kernel. First scales each feature from the package's range to -1..1."""

    def __init__(self, folder: Path):
        head, _, rows = (folder / "svm.txt").read_text(encoding="ascii").partition("SV\n")
        fields = dict(line.split(maxsplit=1) for line in head.splitlines())
        if (fields["svm_type"], fields["kernel_type"]) != ("epsilon_svr", "rbf"):
            raise ValueError(f"BRISQUE's model is {fields['svm_type']} {fields['kernel_type']}, not epsilon_svr rbf")
        self._gamma, self._rho = float(fields["gamma"]), float(fields["rho"])
        # a row contains the weight of a support vector and its 36 features, which have the form number:value
        table = np.loadtxt(re.sub(r"\d+:", "", rows).splitlines())
        self._weights, self._vectors = table[:, 0], table[:, 1:]
        with (folder / "normalize.pickle").open("rb") as file:
            ranges = pickle.load(file)  # safe, because the requirements pin the package
        self._low, self._high = (np.array(ranges[name], float) for name in ("min_", "max_"))

    def __call__(self, found: np.ndarray) -> float:
        scaled = (found - self._low) / (self._high - self._low) * 2.0 - 1.0
        kernel = np.exp(-self._gamma * ((self._vectors - scaled) ** 2).sum(1))
        return float(self._weights @ kernel - self._rho)


@lru_cache(maxsize=1)
def _model() -> _Model | None:
    spec = importlib.util.find_spec("brisque")
    if spec is None or spec.origin is None:
        return None
    return _Model(Path(spec.origin).parent / "models")
