"""Measures the amount of detail in an image without a reference. Images are (H, W, 3) float in 0..1.

Noise increases the first two measures as detail does, so also look at comb, phases and the Fréchet distances.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from bench.quality.pictures import luma
from trial.collage.scenes import to_uint8

LEVELS, PATCH = 64, 64
DISTANCES = (1, 2, 3, 4)
DIRECTIONS = ((0, 1), (-1, 1), (-1, 0), (-1, -1))
"""Steps (rows, columns) at 0, 45, 90 and 135 degrees."""
QUALITY = 95
"""Quality of the JPEG whose size is measured."""
SUBJECT_RADIUS, GROUND_BEYOND = 0.12, 0.45
"""Radius of the disc around a subject's centre, and the distance beyond which there is only ground.

Both are in fractions of the image.
"""


def glcm_score(picture: np.ndarray) -> float:
    """Returns the mean entropy in bits of grey-level co-occurrences of 64 px patches (Diffusion-4K, arXiv 2503.18352).

    It uses 64 grey levels, distances 1 to 4 and four directions, and is symmetric.
    """
    grey = (luma(picture) * LEVELS).astype(int).clip(0, LEVELS - 1)
    height, width = (side // PATCH * PATCH for side in grey.shape)
    patches = grey[:height, :width].reshape(height // PATCH, PATCH, width // PATCH, PATCH).swapaxes(1, 2)
    patches = patches.reshape(-1, PATCH, PATCH)
    steps = [(d * down, d * right) for d in DISTANCES for down, right in DIRECTIONS]
    return float(np.mean([_entropies(patches, down, right).mean() for down, right in steps]))


def _entropies(patches: np.ndarray, down: int, right: int) -> np.ndarray:
    """Returns the entropy (N,) of the pairs of grey levels at one step within each patch (N, P, P)."""
    side = patches.shape[1]
    rows = slice(max(-down, 0), side - max(down, 0)), slice(max(down, 0), side + min(down, 0))
    columns = slice(max(-right, 0), side - max(right, 0)), slice(max(right, 0), side + min(right, 0))
    first, second = patches[:, rows[0], columns[0]], patches[:, rows[1], columns[1]]
    number = np.arange(len(patches))[:, None, None] * LEVELS**2
    pairs = np.concatenate([number + first * LEVELS + second, number + second * LEVELS + first], 1)
    counts = np.bincount(pairs.ravel(), minlength=len(patches) * LEVELS**2).reshape(len(patches), -1)
    share = counts / counts.sum(1, keepdims=True)
    return -(share * np.log2(np.where(share > 0, share, 1.0))).sum(1)


def compression_ratio(picture: np.ndarray) -> float:
    """Returns the bytes of the raw image over those of its JPEG at quality 95.

    An image with more content compresses less.
    """
    data = io.BytesIO()
    Image.fromarray(to_uint8(picture)).save(data, "jpeg", quality=QUALITY)
    return picture.size / len(data.getvalue())


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
