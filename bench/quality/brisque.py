"""Computes BRISQUE (Mittal, Moorthy and Bovik, 2012): naturalness from the statistics of local contrast.

The trained regression comes from the PyPI package brisque. This module reads the files of an installed package. It does
not run the package's code, which needs OpenCV and libsvm.
"""

from __future__ import annotations

import importlib.util
import pickle
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy import ndimage, special

GREY = np.array([0.2125, 0.7154, 0.0721])
SIZE, STD = 7, 7 / 6
"""Size and standard deviation of the Gaussian window, in pixels."""
CONTRAST_FLOOR = 1 / 255
HALVING = np.array([-0.09375, 0.59375, 0.59375, -0.09375])
"""Cubic interpolation (a = -0.75) halfway between pixels."""
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
SHAPES = np.linspace(0.05, 10.0, 20000)
"""The candidate shapes of a generalised Gaussian."""


def brisque(picture: np.ndarray) -> float | None:
    """Returns the score of an image (H, W, 3) in 0..1; lower is better.

    Returns None if the package brisque is missing.
    """
    model = _model()
    return None if model is None else model(features(picture))


def features(picture: np.ndarray) -> np.ndarray:
    """Returns 18 features at full size and 18 at half size, (36,)."""
    grey = picture.astype(np.float64) @ GREY
    return np.concatenate([_features(grey), _features(_halved(grey))])


def _halved(grey: np.ndarray) -> np.ndarray:
    height, width = (side // 2 * 2 for side in grey.shape)
    padded = np.pad(grey[:height, :width], 1, mode="edge")
    rows = sum(weight * padded[i : i + height : 2] for i, weight in enumerate(HALVING))
    return sum(weight * rows[:, i : i + width : 2] for i, weight in enumerate(HALVING))


def _features(grey: np.ndarray) -> np.ndarray:
    """Returns shapes and spreads of the normalised brightness and of its products with four neighbours, (18,)."""
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
    """Returns brightness minus its local mean, divided by its local deviation."""
    offsets = np.arange(SIZE) - SIZE // 2
    window = np.exp(-(offsets**2) / (2 * STD**2))
    window /= window.sum()

    def blurred(x: np.ndarray) -> np.ndarray:
        return ndimage.convolve1d(ndimage.convolve1d(x, window, 0, mode="constant"), window, 1, mode="constant")

    mean = blurred(grey)
    return (grey - mean) / (np.sqrt(np.abs(mean**2 - blurred(grey**2))) + CONTRAST_FLOOR)


def _ratio(shape: np.ndarray) -> np.ndarray:
    """Returns the squared mean absolute value over the mean square of a generalised Gaussian.

    It increases with the shape.
    """
    a, b, c = (special.gammaln(n / shape) for n in (1, 2, 3))
    return np.exp(2 * b - a - c)


@lru_cache(maxsize=1)
def _ratios() -> np.ndarray:
    return _ratio(SHAPES)


def asymmetric_fit(x: np.ndarray) -> tuple[float, float, float, float]:
    """Fits shape, mean, left spread and right spread of an asymmetric generalised Gaussian by matching moments."""
    left, right = (float(np.sqrt((side**2).mean())) if side.size else 0.0 for side in (x[x < 0], x[x >= 0]))
    if min(left, right) <= 0.0:
        return float(SHAPES[0]), 0.0, left, right
    skew = left / right
    found = np.abs(x).mean() ** 2 / (x**2).mean() * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    shape = float(np.interp(found, _ratios(), SHAPES))
    spread = np.sqrt(special.gamma(1 / shape) / special.gamma(3 / shape))
    mean = (right - left) * spread * special.gamma(2 / shape) / special.gamma(1 / shape)
    return shape, float(mean), left, right


class _Model:
    """A support vector regression with a radial kernel, and the ranges of its features."""

    def __init__(self, folder: Path):
        head, _, rows = (folder / "svm.txt").read_text(encoding="ascii").partition("SV\n")
        fields = dict(line.split(maxsplit=1) for line in head.splitlines())
        if (fields["svm_type"], fields["kernel_type"]) != ("epsilon_svr", "rbf"):
            raise ValueError(f"BRISQUE's model is {fields['svm_type']} {fields['kernel_type']}, not epsilon_svr rbf")
        self._gamma, self._rho = float(fields["gamma"]), float(fields["rho"])
        parsed = [line.split() for line in rows.splitlines() if line.strip()]
        self._weights = np.array([float(parts[0]) for parts in parsed])
        self._vectors = np.zeros((len(parsed), 36))
        for row, parts in enumerate(parsed):
            for part in parts[1:]:
                place, value = part.split(":")
                self._vectors[row, int(place) - 1] = float(value)
        with (folder / "normalize.pickle").open("rb") as file:
            ranges = pickle.load(file)  # the file belongs to a package that the requirements pin
        self._low, self._high = (np.array([float(v) for v in ranges[name]]) for name in ("min_", "max_"))

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
