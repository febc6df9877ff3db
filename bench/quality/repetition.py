"""Does a picture show what its base does not? Pictures are (H, W, 3) float in 0..1."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from bench.quality.pictures import downscale

BLOB_FINE, BLOB_COARSE = 1.0, 2.0
"""Standard deviations, in pixels of the base, of the blurs before and after the difference."""
BLOB_THRESHOLD = 0.18
"""Difference that counts, of the 0..1 range; a little under half of what the faintest subject differs by."""


def excess_blobs(picture: np.ndarray, base: np.ndarray) -> int:
    """How many places differ from the base as a subject differs from its ground.

    Components of G_2 |G_1 D(x) - G_1 b| above a threshold, D the reduction to the base's size; the mean difference of
    each channel is taken out first, or a drift of tone would fill the picture.
    """
    difference = _blur(downscale(picture, base.shape[:2]) - base, BLOB_FINE)
    difference -= np.median(difference, (0, 1))
    change = _blur(np.abs(difference), BLOB_COARSE).max(-1)
    return int(ndimage.label(change > BLOB_THRESHOLD)[1])


def _blur(picture: np.ndarray, std: float) -> np.ndarray:
    return ndimage.gaussian_filter(picture, (std, std, 0), mode="nearest")
