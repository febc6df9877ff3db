"""Reads, writes and resizes images. Images are (H, W, 3) float32 in 0..1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from trial.collage.scenes import to_uint8

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def luma(picture: np.ndarray) -> np.ndarray:
    """Computes the brightness (H, W)."""
    return picture @ LUMA


def downscale(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Reduces an image (H, W, C) to `size` (h, w) by averaging. H and W must be multiples of h and w."""
    height, width = size
    rows, columns = picture.shape[0] // height, picture.shape[1] // width
    return picture.reshape(height, rows, width, columns, -1).mean((1, 3))


def upscale(picture: np.ndarray, size: tuple[int, int], filter_: Image.Resampling) -> np.ndarray:
    """Enlarges an image to (height, width). First rounds it to 8 bits, as the webui does before every upscaler."""
    image = Image.fromarray(to_uint8(picture)).resize((size[1], size[0]), filter_)
    return as_float(np.asarray(image))


def as_float(pixels: np.ndarray) -> np.ndarray:
    """Converts 8-bit pixels to 0..1."""
    return pixels.astype(np.float32) / 255.0


def read(path: Path) -> np.ndarray:
    """Reads an image from a file."""
    with Image.open(path) as image:
        return as_float(np.asarray(image.convert("RGB")))


def write(path: Path, picture: np.ndarray) -> None:
    """Writes a PNG file atomically, so that an interrupted run leaves no partial file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    Image.fromarray(to_uint8(picture)).save(part, "png")
    part.replace(path)
