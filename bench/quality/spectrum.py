"""Measures detail by the power spectrum. Images are (H, W, 3) float in 0..1, frequencies are in cycles per pixel."""

from __future__ import annotations

import numpy as np

from bench.quality.pictures import luma

BINS = 32
"""Number of rings of the averaged spectrum, from zero to half a cycle per pixel."""
HIGH = 0.25
"""The lowest high frequency."""


def power(picture: np.ndarray) -> np.ndarray:
    """Returns the power spectrum (H, W) of the brightness with a Hann window, zero frequency first."""
    brightness = luma(picture).astype(np.float64)
    brightness = brightness - brightness.mean()
    window = np.hanning(brightness.shape[0])[:, None] * np.hanning(brightness.shape[1])
    return np.abs(np.fft.fft2(brightness * window)) ** 2


def frequencies(size: tuple[int, int]) -> np.ndarray:
    """Returns the distance from zero frequency (H, W) of every entry of `power`."""
    return np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1])[None])


def log_spectrum(picture: np.ndarray) -> np.ndarray:
    """Returns the natural logarithm of the mean power of every ring, (BINS,).

    Its floor is the rounding noise of 8 bits.
    """
    values = power(picture)
    ring = (frequencies(values.shape) * 2 * BINS).astype(int).ravel()
    inside = ring < BINS
    total = np.bincount(ring[inside], values.ravel()[inside], BINS)
    count = np.bincount(ring[inside], minlength=BINS)
    floor = (1 / 255) ** 2 / 12 * values.size * 0.375**2  # the Hann window keeps 3/8 of white power along an axis
    return np.log(total / count + floor)


def spectrum_distance(spectra: np.ndarray, true_spectra: np.ndarray) -> float:
    """Returns the root mean square difference of two sets' mean log spectra over the rings, each (N, BINS).

    1 means a factor e in power at every scale. The first ring contains the composition and is excluded.
    """
    difference = spectra.mean(0) - true_spectra.mean(0)
    return float(np.sqrt((difference[1:] ** 2).mean()))


def high_frequency_ratio(picture: np.ndarray) -> float:
    """Returns the share of the power at frequencies above HIGH.

    Grain counts as detail, so also look at the comb ratio.
    """
    values = power(picture)
    return float(values[frequencies(values.shape) > HIGH].sum() / values.sum())
