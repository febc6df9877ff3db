"""Sizes and crops in the vector that an SDXL model gets besides the prompt.

The host's vector names the base picture as a whole. A stage makes a bigger one out of views, and the model can be told:
the original and target size are those of the final picture in every stage (as in the paper), and a local view is a crop
that begins at its own offset in the stage's picture. A dilated view shows the whole picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lib_demofusion.plan import CELL
from lib_demofusion.views import LocalView, Size, View

CROP = "crop_coords_top_left"
SIZES = ("original_size_as_tuple", "target_size_as_tuple")

NUMBERS = {**dict.fromkeys((CROP, *SIZES), 2), "aesthetic_score": 1}
"""How many numbers the host puts into the embedder of each key (modules/sd_models_xl.py)."""


@dataclass(frozen=True)
class Frame:
    """What the views are parts of, in pixels."""

    size: Size
    """Height and width of the final picture."""
    origin: Size = (0, 0)
    """Top and left of the picture as a whole: the crop that the user set for the base picture, to which offsets add."""


class SizeVectors:
    """Writes a frame into the vectors of views, with the model's own embedders; prompts are not encoded again."""

    def __init__(self, embedders: Sequence[Any], frame: Frame):
        self._embedders = embedders
        self._frame = frame
        self._rows: dict[tuple[str, Size], Tensor] = {}

    def for_views(self, vector: Tensor, views: Sequence[View]) -> Tensor:
        """Returns the vectors (V * N, D) of a batch of views, view-major, from those of the whole latent (N, D)."""
        out = vector.repeat(len(views), 1)
        slots = number_slots(self._embedders, vector.shape[-1])
        for key in SIZES:
            if key in slots:
                embedder, columns = slots[key]
                out[:, columns] = self._row(embedder, self._frame.size, vector)
        if CROP in slots:
            embedder, columns = slots[CROP]
            crops = torch.cat([self._row(embedder, self._crop(view), vector) for view in views])
            out[:, columns] = crops.repeat_interleave(len(vector), dim=0)
        return out

    def _crop(self, view: View) -> Size:
        top, left = self._frame.origin
        return (top + view.top * CELL, left + view.left * CELL) if isinstance(view, LocalView) else (top, left)

    def _row(self, embedder: Any, value: Size, like: Tensor) -> Tensor:
        """Returns the embedding (1, d) of two numbers; jittered views come back to the same places over and over."""
        key = embedder.input_key, value
        if key not in self._rows:
            numbers = torch.tensor([value], dtype=torch.float32, device=like.device)
            self._rows[key] = embedder(numbers).to(like)
        return self._rows[key]


def number_slots(embedders: Sequence[Any], width: int) -> dict[str, tuple[Any, slice]]:
    """Returns by key each embedder of numbers and its columns in a vector of `width` columns.

    The conditioner joins its embedders' outputs in order. They are walked from the end: how much of the vector the text
    embedders before the numbers fill is written nowhere (1280 columns in SDXL, none in some small models).
    """
    slots, end = {}, width
    for embedder in reversed(embedders):
        extent = NUMBERS.get(getattr(embedder, "input_key", None) or "", 0) * getattr(embedder, "outdim", 0)
        if not 0 < extent <= end:
            break
        slots[embedder.input_key] = (embedder, slice(end - extent, end))
        end -= extent
    return slots


def size_vectors(model: Any, frame: Frame) -> SizeVectors | None:
    """Returns the writer for a model of the host, or None where the model knows no sizes."""
    embedders = getattr(getattr(model, "conditioner", None), "embedders", None)
    return SizeVectors(list(embedders), frame) if embedders is not None else None
