"""Measures defects and detail of single images. Images are (H, W, 3) float in 0..1, and `base` is the base image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from bench.quality.pictures import downscale, luma
from lib_demofusion.method.plan import CELL

PSNR_LIMIT = 60.0
"""The highest PSNR, in dB, that is reported. A higher PSNR would only measure the rounding to 8 bits."""
BLOB_FINE, BLOB_COARSE = 1.0, 2.0
"""Standard deviations of the two blurs in `excess_blobs`, G_1 and G_2, in pixels of the base image."""
BLOB_THRESHOLD = 0.18
"""An area is a foreign spot if its difference from the base image exceeds this value, on the scale 0..1.

The value is slightly less than half of the difference between the faintest subject and its ground (its background).
"""
SUBJECT_RADIUS, GROUND_BEYOND = 0.12, 0.45
"""Distances from the center of the subject, in fractions of the image.

The subject's color is measured within the first distance. The ground's color is measured beyond the second distance.
"""
TENTH_OF_A_LEVEL = 0.1 / 255
RINGS = 32
"""Number of rings into which frequencies from 0 to 0.5 cycles per pixel are divided. A spectrum has a mean per ring."""
HIGH = 0.25
"""A frequency above this value, in cycles per pixel, counts as high."""


def structure_psnr(picture: np.ndarray, base: np.ndarray) -> float:
    """Computes the PSNR in dB between the base image and an image reduced to its size. The maximum is PSNR_LIMIT."""
    error = float(((downscale(picture, base.shape[:2]) - base) ** 2).mean())
    return min(-10 * math.log10(error), PSNR_LIMIT) if error > 0 else PSNR_LIMIT


def excess_blobs(picture: np.ndarray, base: np.ndarray) -> int:
    """Counts foreign spots: areas that differ from the base image by more than BLOB_THRESHOLD, like an added subject.

    The image is first reduced to the size of the base image. A spot is a connected area in which G_2 |G_1 (picture -
    base)| exceeds the threshold in any channel. G_1 and G_2 are Gaussian blurs. Before the absolute value is taken, the
    median of each channel is subtracted. Otherwise, a color drift of the whole image would count as one large spot.
    """
    difference = _blur(downscale(picture, base.shape[:2]) - base, BLOB_FINE)
    difference -= np.median(difference, (0, 1))
    change = _blur(np.abs(difference), BLOB_COARSE).max(-1)
    return int(ndimage.label(change > BLOB_THRESHOLD)[1])


def _blur(picture: np.ndarray, std: float) -> np.ndarray:
    return ndimage.gaussian_filter(picture, (std, std, 0), mode="nearest")


def seam_gradient_ratio(
    picture: np.ndarray, rows: Sequence[int], columns: Sequence[int], base_cell: int = CELL
) -> float:
    """Computes the gradient across view borders divided by the gradient across other cell borders; 1 means no seam.

    The result is the mean of the ratios for `rows` and `columns`, which are the first pixels after each view border.
    The edges of the image do not count as borders. Both gradients are first divided by the gradient 4 to 6 pixels away.
    A decoder draws smaller differences between two cells than within a cell, so a view border is compared only with
    cell borders. The base image was decoded too, and its cells are `base_cell` pixels wide in the enlarged image. A
    view border is therefore compared with cell borders at the same position within the cells of the base image, or with
    all other cell borders if there are none.
    """
    brightness = luma(picture)
    return (_line_ratio(brightness.T, rows, base_cell) + _line_ratio(brightness, columns, base_cell)) / 2


def _line_ratio(brightness: np.ndarray, lines: Sequence[int], base_cell: int) -> float:
    gradient = np.abs(np.diff(brightness, axis=1))  # column c is between pixels c and c + 1
    cells = range(CELL, brightness.shape[1], CELL)
    alike = [cell for line in lines for cell in cells if (cell - line) % base_cell == 0 and cell not in lines]
    others = alike or [cell for cell in cells if cell not in lines]
    return _against_beside(gradient, lines) / _against_beside(gradient, others)


def _against_beside(gradient: np.ndarray, lines: Sequence[int]) -> float:
    """Returns the median gradient across the borders before the pixels `lines`, divided by the median near them.

    A median ignores the edge of a subject, which is not a seam. A gradient below a tenth of an 8-bit level counts as a
    tenth of a level, so a uniform image has a ratio of 1.
    """
    columns = [line - 1 for line in lines]
    beside = [column + sign * offset for column in columns for offset in (4, 5, 6) for sign in (-1, 1)]
    inside = [column for column in beside if 0 <= column < gradient.shape[1]]
    if not inside:
        return 1.0
    on, near = (max(float(np.median(gradient[:, some])), TENTH_OF_A_LEVEL) for some in (columns, inside))
    return on / near


def power(picture: np.ndarray) -> np.ndarray:
    """Computes the power spectrum (H, W) of the brightness with a Hann window. Entry (0, 0) is the zero frequency."""
    brightness = luma(picture).astype(np.float64)
    window = np.hanning(brightness.shape[0])[:, None] * np.hanning(brightness.shape[1])
    return np.abs(np.fft.fft2((brightness - brightness.mean()) * window)) ** 2


def frequencies(size: tuple[int, int]) -> np.ndarray:
    """Returns the frequency (H, W) of every entry of `power`, in cycles per pixel."""
    return np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1])[None])


def log_spectrum(picture: np.ndarray) -> np.ndarray:
    """Computes the natural logarithm of the mean power in every ring of frequencies, (RINGS,).

    The power of the rounding to 8 bits is added to each ring, so an image without detail has a finite result.
    """
    values = power(picture)
    ring = (frequencies(values.shape) * 2 * RINGS).astype(int)
    # along each of the two axes, the Hann window keeps 3/8 of the power of white noise
    floor = (1 / 255) ** 2 / 12 * values.size * 0.375**2
    return np.log(ndimage.mean(values, ring, np.arange(RINGS)) + floor)


def high_frequency_ratio(picture: np.ndarray) -> float:
    """Computes the share of the power that is above the frequency HIGH.

    Grain increases this share in the same way as true detail. `comb_ratio` detects the grain of dilated views.
    """
    values = power(picture)
    return float(values[frequencies(values.shape) > HIGH].sum() / values.sum())


def comb_ratio(picture: np.ndarray, factor: int) -> float:
    """Computes the power of a pattern that dilated views can leave, divided by the power at nearby frequencies.

    A dilated view takes every `factor`-th cell. If the dilated views disagree, the image has a pattern that repeats
    every `factor` cells. 1 means that there is no such pattern. The frequencies of patterns that repeat in every cell
    are left out, because the decoder causes such patterns.
    """
    values = power(picture)
    height, width = values.shape
    step = height // (CELL * factor), width // (CELL * factor)
    reach = range(-2 * factor + 1, 2 * factor)
    places = [(a, b) for a in reach for b in reach if (a, b) > (0, 0) and (a % factor or b % factor)]
    return float(np.median([_peak(values, a * step[0], b * step[1]) for a, b in places]))


def _peak(values: np.ndarray, row: int, column: int) -> float:
    """Divides a value by the median of the values 3 to 5 entries away. A peak of the Hann window ends before these."""
    offsets = range(-5, 6)
    ring = [values[row + i, column + j] for i in offsets for j in offsets if 9 <= i * i + j * j <= 25]
    return float(values[row, column] / np.median(ring))


def phase_ratio(picture: np.ndarray, factor: int) -> float:
    """Divides the mean squared difference of adjacent latent cells by the mean squared difference of distant cells.

    The value of a cell is the mean brightness of its pixels. Distant cells are `factor` cells apart, so they belong to
    the same dilated view. In a clean image, differences grow with the distance, so the ratio is below 1. If the dilated
    views disagree, adjacent cells differ more. Unlike `comb_ratio`, this function also detects views whose difference
    varies across the image.
    """
    cells = downscale(luma(picture)[..., None], (picture.shape[0] // CELL, picture.shape[1] // CELL))[..., 0]
    return _mean_square_step(cells, 1) / max(_mean_square_step(cells, factor), 1e-9)


def _mean_square_step(values: np.ndarray, lag: int) -> float:
    down, across = values[lag:] - values[:-lag], values[:, lag:] - values[:, :-lag]
    return float((down**2).mean() + (across**2).mean()) / 2


def anisotropy(picture: np.ndarray, fine: float = 3.0, coarse: float = 4.0) -> float:
    """Computes the mean coherence (l1 - l2) / (l1 + l2) of the structure tensor of the finest detail.

    l1 and l2 are the eigenvalues of the tensor, l1 >= l2. The detail is the brightness minus its Gaussian blur with the
    standard deviation `fine`. `coarse` is the standard deviation of the blur of the structure tensor. 0 means even
    grain, and 1 means streaks.
    """
    brightness = luma(picture)
    down, across = np.gradient(brightness - ndimage.gaussian_filter(brightness, fine))
    xx, yy, xy = (ndimage.gaussian_filter(value, coarse) for value in (across**2, down**2, across * down))
    spread = np.sqrt((xx - yy) ** 2 + 4 * xy**2)
    return float((spread / np.maximum(xx + yy, 1e-9)).mean())


def tone_drift(picture: np.ndarray, base: np.ndarray) -> float:
    """Computes how much the mean and the standard deviation differ from those of the base image, on the scale 0..1.

    The two absolute differences are added and averaged over the channels. The image is first reduced to the size of the
    base image, so that new detail does not count as contrast.
    """
    low = downscale(picture, base.shape[:2])
    means = np.abs(low.mean((0, 1)) - base.mean((0, 1)))
    spreads = np.abs(low.std((0, 1)) - base.std((0, 1)))
    return float((means + spreads).mean())


def color_changes(picture: np.ndarray, base: np.ndarray, place: tuple[float, float]) -> tuple[float, float]:
    """Computes how much the mean colors of the subject and of the ground differ from those in the base image.

    Each result is the mean of the channels' absolute differences, on the scale 0..1. `place` is the center (x, y) of
    the subject in the base image, in fractions of the image.
    """
    height, width = base.shape[:2]
    low, (y, x) = downscale(picture, (height, width)), np.mgrid[:height, :width]
    distance = np.hypot((x + 0.5) / width - place[0], (y + 0.5) / height - place[1])
    areas = distance < SUBJECT_RADIUS, distance > GROUND_BEYOND
    subject, ground = (float(np.abs(low[area].mean(0) - base[area].mean(0)).mean()) for area in areas)
    return subject, ground
