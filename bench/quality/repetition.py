"""Detects content in an image that its base does not show. Images are (H, W, 3) float in 0..1."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from bench.quality.pictures import downscale

BLOB_FINE, BLOB_COARSE = 1.0, 2.0
"""Standard deviations of the blurs before and after the difference, in pixels of the base."""
BLOB_THRESHOLD = 0.18
"""Minimum difference in the 0..1 range. It is a little under half of the difference of the faintest subject."""


def excess_blobs(picture: np.ndarray, base: np.ndarray) -> int:
    """Counts the places that differ from the base as much as a subject differs from its ground.

    These are the components of G_2 |G_1 D(x) - G_1 b| above a threshold, where D reduces to the base's size. The median
    difference of each channel is subtracted first. Otherwise a drift of tone would fill the whole image.
    """
    difference = _blur(downscale(picture, base.shape[:2]) - base, BLOB_FINE)
    difference -= np.median(difference, (0, 1))
    change = _blur(np.abs(difference), BLOB_COARSE).max(-1)
    return int(ndimage.label(change > BLOB_THRESHOLD)[1])


def _blur(picture: np.ndarray, std: float) -> np.ndarray:
    return ndimage.gaussian_filter(picture, (std, std, 0), mode="nearest")
