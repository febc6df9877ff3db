"""Detects the subjects of an image and classifies its ground (its background), with a small network.

The network was trained on rendered collages. The diffusion model had no part in the training.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from trial import packing
from trial.collage.content import captions
from trial.collage.scenes import to_uint8

WEIGHTS = Path(__file__).with_name("detector.safetensors")
"""The weights, packed with 8 bits per weight."""
SIDE = 128
"""Images are resized before detection, so that their shorter side has this number of pixels."""
THRESHOLD = 0.4
"""A local maximum of the probability is the centre of a subject if the probability exceeds this value."""


@dataclass(frozen=True)
class Finding:
    """A subject in an image: the subject's index, and its centre (x, y) in fractions of the width and height."""

    subject: int
    x: float
    y: float


@dataclass(frozen=True)
class Reading:
    """The subjects of an image, the most probable subject first, and the index of the image's ground."""

    subjects: tuple[Finding, ...]
    ground: int


class _Residual(nn.Module):
    """A dilated convolution and an ordinary convolution, with a skip connection around both."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Detector(nn.Module):
    """Detects subjects and grounds in images (B, 3, H, W) in -1..1.

    Returns three tensors of logits: whether a position is the centre of a subject (B, 1, H / 8, W / 8), which of the S
    subjects it is (B, S, H / 8, W / 8), and which of the G grounds the image has (B, G).
    """

    def __init__(self, subjects: int, grounds: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 24, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(24, 48, 3, stride=2, padding=1),
            _Residual(48, 1),
            nn.Conv2d(48, 96, 3, stride=2, padding=1),
            *(_Residual(96, dilation) for dilation in (1, 2, 4, 1)),
        )
        self.heads = nn.Sequential(nn.GroupNorm(8, 96), nn.ReLU(), nn.Conv2d(96, 1 + subjects, 1))
        self.ground = nn.Linear(96, grounds)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.features(x)
        maps = self.heads(h)
        return maps[:, :1], maps[:, 1:], self.ground(F.relu(h).mean((2, 3)))


@lru_cache(maxsize=1)
def trained() -> Detector:
    """Loads the bundled detector."""
    model = Detector(*(len(names) for names in captions()))
    model.load_state_dict({name: weight.float() for name, weight in packing.load(WEIGHTS).items()})
    return model.eval().requires_grad_(False)


def peaks(centres: Tensor) -> list[tuple[int, int]]:
    """Finds the local maxima of probabilities (h, w) that exceed THRESHOLD.

    Returns the (row, column) of each maximum. The highest maximum comes first.
    """
    highest = F.max_pool2d(centres[None, None], 5, stride=1, padding=2)[0, 0]
    places = ((centres == highest) & (centres > THRESHOLD)).nonzero().tolist()
    return sorted(((y, x) for y, x in places), key=lambda place: -float(centres[place]))


def prepared(image: np.ndarray) -> np.ndarray:
    """Resizes an image (H, W, 3) so that its shorter side has SIDE pixels, and converts it to float32 in -1..1.

    The type of `image` is uint8, or float with values in 0..1.
    """
    picture = Image.fromarray(image if image.dtype == np.uint8 else to_uint8(image))
    factor = SIDE / min(picture.size)
    if factor != 1.0:
        size = (round(picture.width * factor), round(picture.height * factor))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(picture, np.float32) / 127.5 - 1.0


def read(images: list[np.ndarray]) -> list[Reading]:
    """Detects the subjects and the ground of each image. All images must have the same size."""
    x = torch.from_numpy(np.stack([prepared(image) for image in images])).permute(0, 3, 1, 2)
    with torch.no_grad():
        centres, subjects, grounds = trained()(x)
    return [_reading(*one) for one in zip(centres[:, 0].sigmoid(), subjects, grounds.argmax(1).tolist())]


def _reading(centres: Tensor, subjects: Tensor, ground: int) -> Reading:
    found = [
        Finding(int(subjects[:, y, x].argmax()), (x + 0.5) / centres.shape[1], (y + 0.5) / centres.shape[0])
        for y, x in peaks(centres)
    ]
    return Reading(tuple(found), ground)


def crops(image: np.ndarray) -> list[np.ndarray]:
    """Crops squares of SIDE x SIDE pixels that together cover an image (H, W, 3).

    Adjacent squares overlap by at least half.
    """

    def starts(length: int) -> list[int]:
        steps = max(-(-2 * (length - SIDE) // SIDE), 0)
        return [round(i * (length - SIDE) / max(steps, 1)) for i in range(steps + 1)]

    return [image[y : y + SIDE, x : x + SIDE] for y in starts(image.shape[0]) for x in starts(image.shape[1])]


def crops_with_subject(image: np.ndarray) -> float:
    """Computes the share of an image's crops that show a whole subject.

    In an image of at least twice the native size, a correct subject is too large for a crop. Every whole subject in a
    crop is therefore an extra subject.
    """
    readings = read(crops(image))
    return sum(bool(reading.subjects) for reading in readings) / len(readings)
