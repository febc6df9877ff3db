"""Detail by its power spectrum. Pictures are (H, W, 3) float in 0..1, frequencies are in cycles per pixel."""

from __future__ import annotations

import numpy as np

from bench.quality.pictures import luma

BINS = 32
"""Rings of the averaged spectrum, from zero to half a cycle per pixel."""
HIGH = 0.25
"""Where high frequencies begin."""


def power(picture: np.ndarray) -> np.ndarray:
    """Power spectrum (H, W) of the brightness under a Hann window, zero frequency first."""
    brightness = luma(picture).astype(np.float64)
    brightness = brightness - brightness.mean()
    window = np.hanning(brightness.shape[0])[:, None] * np.hanning(brightness.shape[1])
    return np.abs(np.fft.fft2(brightness * window)) ** 2


def frequencies(size: tuple[int, int]) -> np.ndarray:
    """Distance from zero frequency (H, W) of every entry of `power`."""
    return np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1])[None])


def log_spectrum(picture: np.ndarray) -> np.ndarray:
    """Natural logarithm of the mean power of every ring, (BINS,); 8 bits' rounding noise is the floor."""
    values = power(picture)
    ring = (frequencies(values.shape) * 2 * BINS).astype(int).ravel()
    inside = ring < BINS
    total = np.bincount(ring[inside], values.ravel()[inside], BINS)
    count = np.bincount(ring[inside], minlength=BINS)
    floor = (1 / 255) ** 2 / 12 * values.size * 0.375**2  # the Hann window keeps 3/8 of white power along an axis
    return np.log(total / count + floor)


def spectrum_distance(spectra: np.ndarray, true_spectra: np.ndarray) -> float:
    """Root mean square over the rings of the difference of two sets' mean log spectra, each (N, BINS).

    1 means a factor e in power at every scale. The first ring, which holds the composition, is left out.
    """
    difference = spectra.mean(0) - true_spectra.mean(0)
    return float(np.sqrt((difference[1:] ** 2).mean()))


def high_frequency_ratio(picture: np.ndarray) -> float:
    """Share of the power at frequencies above HIGH. Grain counts as detail: read it beside the comb ratio."""
    values = power(picture)
    return float(values[frequencies(values.shape) > HIGH].sum() / values.sum())
