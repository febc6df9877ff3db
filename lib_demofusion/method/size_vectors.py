"""Writes sizes and crops into the vector that an SDXL model gets in addition to the prompt.

The host's vector describes the whole base image. In a stage, each view gets a vector of its own. The original and
target size are those of the final image in every stage, as in the paper. The crop of a local view begins at the view's
offset in the stage's image. A dilated view shows the whole image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lib_demofusion.method.plan import CELL
from lib_demofusion.method.views import LocalView, Size, View

CROP = "crop_coords_top_left"
SIZES = ("original_size_as_tuple", "target_size_as_tuple")

NUMBERS = {**dict.fromkeys((CROP, *SIZES), 2), "aesthetic_score": 1}
"""How many numbers the host passes to the embedder of each key (modules/sd_models_xl.py)."""


@dataclass(frozen=True)
class Frame:
    """The image that the views are parts of, in pixels."""

    size: Size
    """Height and width of the final image."""
    origin: Size = (0, 0)
    """Top and left of the whole image: the user's crop for the base image. The offsets of views are added to it."""


class SizeVectors:
    """Writes sizes and crops into the vectors of views with the model's embedders. Prompts are not encoded again."""

    def __init__(self, embedders: Sequence[Any], frame: Frame):
        self._embedders = embedders
        self._frame = frame
        self._size_rows: dict[str, Tensor] = {}
        self._crops: tuple[Tensor, Tensor] | None = None

    def for_views(self, vector: Tensor, views: Sequence[View]) -> Tensor:
        """Returns the vectors (V * N, D) of a batch of views, view-major, from those of the whole latent (N, D)."""
        out = vector.repeat(len(views), 1)
        slots = number_slots(self._embedders, vector.shape[-1])
        for key in SIZES:
            if key in slots:
                embedder, columns = slots[key]
                out[:, columns] = self._size_row(embedder, vector)
        if CROP in slots:
            embedder, columns = slots[CROP]
            crops = torch.stack([self._crop(embedder, view, vector) for view in views])
            out[:, columns] = crops.repeat_interleave(len(vector), dim=0)
        return out

    def _size_row(self, embedder: Any, like: Tensor) -> Tensor:
        """Returns the embedding (1, d) of the final image's size."""
        if embedder.input_key not in self._size_rows:
            self._size_rows[embedder.input_key] = _embedded(embedder, [self._frame.size], like)
        return self._size_rows[embedder.input_key]

    def _crop(self, embedder: Any, view: View, like: Tensor) -> Tensor:
        """Returns the embedding (d,) of a view's position."""
        if self._crops is None:
            self._crops = self._crop_tables(embedder, like)
        top, left = (view.top, view.left) if isinstance(view, LocalView) else (0, 0)
        return torch.cat([self._crops[0][top], self._crops[1][left]])

    def _crop_tables(self, embedder: Any, like: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the embeddings (n, d / 2) of all top positions and of all left positions in cells.

        Each number has its own columns. All positions are embedded in advance, because with jitter nearly every view
        has a new position, and each copy of a number to the device waits until the device has finished its queue.
        """
        top, left = self._frame.origin
        cells = range(max(self._frame.size) // CELL + 1)
        made = _embedded(embedder, [(top + cell * CELL, left + cell * CELL) for cell in cells], like)
        tops, lefts = made.chunk(2, dim=1)
        return tops, lefts


def _embedded(embedder: Any, numbers: Sequence[Size], like: Tensor) -> Tensor:
    """Returns the embeddings (n, d) of pairs of numbers."""
    embedded: Tensor = embedder(torch.tensor(numbers, dtype=torch.float32, device=like.device))
    return embedded.to(like)


def number_slots(embedders: Sequence[Any], width: int) -> dict[str, tuple[Any, slice]]:
    """Returns each embedder of numbers and its columns in a vector of `width` columns, by key.

    The conditioner joins its embedders' outputs in order. The columns are counted from the end, because the size of the
    text embedding at the start is not stored anywhere (1280 columns in SDXL, none in some small models).
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
    """Returns the writer for a model of the host, or None if the model does not receive sizes."""
    embedders = getattr(getattr(model, "conditioner", None), "embedders", None)
    return SizeVectors(list(embedders), frame) if embedders is not None else None
