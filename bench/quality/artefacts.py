"""Measures seams, dilated grain, smear, drift, and the structure of the base. Images are (H, W, 3) float in 0..1."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from bench.quality.pictures import downscale, luma
from bench.quality.spectrum import power

PSNR_LIMIT = 60.0
"""In dB. Higher values are due to the rounding to 8 bits."""
CELL = 8
"""Pixels of a latent cell."""


SUBJECT_RADIUS, GROUND_BEYOND = 0.12, 0.45
"""Radius of the disc around a subject's centre, and the distance beyond which there is only ground.

Both are in fractions of the image.
"""

TENTH_OF_A_LEVEL = 0.1 / 255


def structure_psnr(picture: np.ndarray, base: np.ndarray) -> float:
    """Returns the PSNR in dB of the image, reduced to the base's size, relative to the base."""
    error = float(((downscale(picture, base.shape[:2]) - base) ** 2).mean())
    return min(-10 * math.log10(error), PSNR_LIMIT) if error > 0 else PSNR_LIMIT


def seam_gradient_ratio(
    picture: np.ndarray, rows: Sequence[int], columns: Sequence[int], base_cell: int = CELL
) -> float:
    """Returns the ratio of the gradient across view borders to that across other cell borders.

    The result is the mean of both axes, and 1 means no seam. Both gradients are divided by the gradient at a distance
    of 4 to 6 pixels, because a decoder always draws smaller differences between cells than within them. The decoder of
    the base image did the same. In the enlarged image, its cells have `base_cell` pixels. A border is therefore
    compared only with cell borders at the same position within these cells. `rows` and `columns` are the first pixels
    after the borders, without the image's edges.
    """
    brightness = luma(picture)
    ratios = [_line_ratio(brightness.T, rows, base_cell), _line_ratio(brightness, columns, base_cell)]
    return float(np.mean(ratios))


def _line_ratio(brightness: np.ndarray, lines: Sequence[int], base_cell: int) -> float:
    gradient = np.abs(np.diff(brightness, axis=1))  # column c is between pixels c and c + 1
    cells = range(CELL, brightness.shape[1], CELL)
    alike = [cell for line in lines for cell in cells if (cell - line) % base_cell == 0 and cell not in lines]
    others = alike or [cell for cell in cells if cell not in lines]
    on_borders, elsewhere = (_against_beside(gradient, [line - 1 for line in some]) for some in (lines, others))
    return on_borders / elsewhere


def _against_beside(gradient: np.ndarray, columns: Sequence[int]) -> float:
    """Returns the median on the columns, divided by the median near them.

    A median ignores a subject's edge, which is not a seam. A gradient below a tenth of an 8-bit level counts as a tenth
    of a level, so that a plain ground has a ratio of 1.
    """
    beside = [column + sign * offset for column in columns for offset in (4, 5, 6) for sign in (-1, 1)]
    inside = [column for column in beside if 0 <= column < gradient.shape[1]]
    if not inside:
        return 1.0
    on, beside_them = (max(float(np.median(gradient[:, some])), TENTH_OF_A_LEVEL) for some in (columns, inside))
    return on / beside_them


def comb_ratio(picture: np.ndarray, factor: int) -> float:
    """Returns the ratio of the power at the harmonics of `factor` latent cells to that of their neighbours.

    1 means no dilated grain. If the dilated sub-grids differ, they make a pattern with this period. The harmonics of a
    single cell come from the decoder's own grid and are excluded.
    """
    values = power(picture)
    height, width = values.shape
    step = height // (CELL * factor), width // (CELL * factor)
    reach = range(-2 * factor + 1, 2 * factor)
    places = [(a, b) for a in reach for b in reach if (a, b) > (0, 0) and (a % factor or b % factor)]
    ratios = [_peak(values, a * step[0], b * step[1]) for a, b in places]
    return float(np.median(ratios))


def _peak(values: np.ndarray, row: int, column: int) -> float:
    """Returns a value relative to the median of those 3 to 5 entries away, which the window does not smear."""
    offsets = range(-5, 6)
    ring = [values[row + i, column + j] for i in offsets for j in offsets if 9 <= i * i + j * j <= 25]
    return float(values[row, column] / np.median(ring))


def phase_ratio(picture: np.ndarray, factor: int) -> float:
    """Returns the ratio of the mean squared difference of neighbouring latent cells to that of cells `factor` apart.

    It is computed along both axes. Cells `factor` apart belong to the same sub-grid. In clean images, differences grow
    with the distance, so the ratio is below 1. If the sub-grids differ, neighbouring cells differ more, even without a
    fixed offset.
    """
    cells = downscale(luma(picture)[..., None], (picture.shape[0] // CELL, picture.shape[1] // CELL))[..., 0]
    return _mean_square_step(cells, 1) / max(_mean_square_step(cells, factor), 1e-9)


def _mean_square_step(values: np.ndarray, lag: int) -> float:
    down, across = values[lag:] - values[:-lag], values[:, lag:] - values[:, :-lag]
    return float((down**2).mean() + (across**2).mean()) / 2


def anisotropy(picture: np.ndarray, fine: float = 3.0, coarse: float = 4.0) -> float:
    """Returns the mean coherence (l1 - l2) / (l1 + l2) of the structure tensor of x - G_fine x.

    0 is even grain, and 1 is streaks.
    """
    brightness = luma(picture)
    detail = brightness - ndimage.gaussian_filter(brightness, fine)
    down, across = np.gradient(detail)
    xx, yy, xy = (ndimage.gaussian_filter(value, coarse) for value in (across**2, down**2, across * down))
    spread = np.sqrt((xx - yy) ** 2 + 4 * xy**2)
    return float((spread / np.maximum(xx + yy, 1e-9)).mean())


def tone_drift(picture: np.ndarray, base: np.ndarray) -> float:
    """Returns the change of mean and standard deviation from the base, averaged over the channels, in the 0..1 range.

    It uses the reduced image, so that new detail does not count as contrast.
    """
    low = downscale(picture, base.shape[:2])
    means = np.abs(low.mean((0, 1)) - base.mean((0, 1)))
    spreads = np.abs(low.std((0, 1)) - base.std((0, 1)))
    return float((means + spreads).mean())


def colour_changes(picture: np.ndarray, base: np.ndarray, place: tuple[float, float]) -> tuple[float, float]:
    """Returns the change of the mean colours of subject and ground from the base, as means of the channels in 0..1.

    `picture` is already reduced to the base's size. `place` is the subject's centre in the base, in fractions.
    """
    height, width = base.shape[:2]
    y, x = np.mgrid[:height, :width]
    distance = np.hypot((x + 0.5) / width - place[0], (y + 0.5) / height - place[1])
    inside, outside = distance < SUBJECT_RADIUS, distance > GROUND_BEYOND
    moved = (np.abs(picture[mask].mean(0) - base[mask].mean(0)).mean() for mask in (inside, outside))
    subject, ground = (float(value) for value in moved)
    return subject, ground
