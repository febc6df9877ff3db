"""Counts and names the subjects of an image by nearest palette colour and connected components."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from trial.scenes import GROUND_COLOURS, SUBJECT_COLOURS

SHORT_SIDE = 256
MIN_AREA = 0.002  # share of the image; a subject of a 4x image that consists of native-size tiles covers about 0.006
SMOOTHING = 1.5  # pixels at SHORT_SIDE
LUMA_WEIGHT = 0.5
PALETTE = {**SUBJECT_COLOURS, **GROUND_COLOURS}
SUBJECT_NAMES, GROUND_NAMES = tuple(SUBJECT_COLOURS), tuple(GROUND_COLOURS)


@dataclass(frozen=True)
class Label:
    """The content of an image. Shape and colour are None without a subject."""

    shape: str | None
    colour: str | None
    ground: str | None


def _opponent(rgb: np.ndarray) -> np.ndarray:
    """Converts (..., 3) RGB to luma, red-green and yellow-blue.

    Luma has a lower weight because texture changes it most.
    """
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    luma, red_green, yellow_blue = (r + g + b) / np.sqrt(3.0), (r - g) / np.sqrt(2.0), (r + g - 2 * b) / np.sqrt(6.0)
    return np.stack([LUMA_WEIGHT * luma, red_green, yellow_blue], -1)


def _normalise(image: np.ndarray) -> np.ndarray:
    """Returns the image as float RGB with a short side of SHORT_SIDE pixels."""
    image = np.asarray(image)
    picture = image.astype(np.float32) / (255.0 if image.dtype == np.uint8 else 1.0)
    factor = SHORT_SIDE / min(picture.shape[:2])
    if factor < 1.0:
        picture = ndimage.gaussian_filter(picture, (0.4 / factor, 0.4 / factor, 0))
    picture = ndimage.zoom(picture, (factor, factor, 1), order=1, mode="nearest", grid_mode=True)
    return ndimage.gaussian_filter(picture, (SMOOTHING, SMOOTHING, 0))


def palette_map(image: np.ndarray) -> np.ndarray:
    """Returns the (H, W) index of the nearest palette colour at the detector's resolution. Subjects come first."""
    points = _opponent(_normalise(image))
    centres = _opponent(np.asarray(list(PALETTE.values()), np.float32))
    return ((points[..., None, :] - centres) ** 2).sum(-1).argmin(-1)


def _components(indices: np.ndarray) -> list[np.ndarray]:
    """Returns the masks of the subjects, the largest first."""
    mask = ndimage.binary_opening(indices < len(SUBJECT_NAMES), iterations=2)
    labelled, _ = ndimage.label(mask)
    areas = np.bincount(labelled.ravel())
    areas[0] = 0
    order = [i for i in np.argsort(areas)[::-1] if areas[i] >= MIN_AREA * mask.size]
    return [labelled == i for i in order]


def count_subjects(image: np.ndarray) -> int:
    """Counts the separate subjects in an (H, W, 3) image (uint8, or float in 0..1)."""
    return len(_components(palette_map(image)))


def count_inner_subjects(image: np.ndarray) -> int:
    """Counts the subjects that are completely inside an image, away from its borders."""
    masks = _components(palette_map(image))
    return sum(not (mask[[0, -1]].any() or mask[:, [0, -1]].any()) for mask in masks)


def place(image: np.ndarray) -> tuple[float, float] | None:
    """Returns the centre (x, y) of the largest subject in fractions of the image."""
    masks = _components(palette_map(image))
    if not masks:
        return None
    rows, columns = np.nonzero(masks[0])
    return (float(columns.mean()) + 0.5) / masks[0].shape[1], (float(rows.mean()) + 0.5) / masks[0].shape[0]


def _shape_name(mask: np.ndarray) -> str:
    """Classifies a mask by its solidity and by the share of its circumscribed circle that it fills."""
    mask = ndimage.binary_fill_holes(mask)
    points = np.argwhere(mask).astype(np.float64)
    area = float(len(points))
    try:
        solidity = area / ConvexHull(points).volume
    except QhullError:
        return "circle"
    radius = np.quantile(np.linalg.norm(points - points.mean(0), axis=1), 0.995)
    filled = area / (np.pi * radius**2)
    if solidity < 0.84:
        return "cross"
    if filled > 0.83:
        return "circle"
    return "square" if filled > 0.56 else "triangle"


def classify(image: np.ndarray) -> Label:
    """Returns shape and colour of the largest subject, and the colour of the ground."""
    indices = palette_map(image)
    ground_votes = np.bincount(indices.ravel(), minlength=len(PALETTE))[len(SUBJECT_NAMES) :]
    ground = GROUND_NAMES[int(ground_votes.argmax())] if ground_votes.any() else None
    masks = _components(indices)
    if not masks:
        return Label(None, None, ground)
    votes = np.bincount(indices[masks[0]], minlength=len(PALETTE))[: len(SUBJECT_NAMES)]
    return Label(_shape_name(masks[0]), SUBJECT_NAMES[int(votes.argmax())], ground)
