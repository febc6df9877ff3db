"""Creates the conds of a batch of views from the conds of the whole latent.

An SDXL model also receives a vector, which contains an original size, a target size and the position of a crop. The
host's vector describes the whole base image. In a stage, each view gets a vector of its own. In every stage, the
original size and the target size are the size of the final image, as in the paper. The position of the crop is the
position of a local view in the image of the stage. A dilated view covers the whole image, so the position of its crop
is 0, 0. The user's crop settings are added to these positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_demofusion.method.plan import CELL
from lib_demofusion.method.views import LocalView, Size, View

Cond = Mapping[str, Any]
"""The conditions that the host passes to its model, by key. The values are tensors, or lists of one tensor."""

SPATIAL = "c_concat"
"""The key of the only condition that can be an image.

The number of dimensions does not show whether a condition is an image. For example, the text embedding of Krea 2 also
has four dimensions.
"""


def cond_for_views(cond: Cond, views: Sequence[View], rows: slice, size: Size, crop_size: Size) -> dict[str, Any]:
    """Returns the cond of a batch of views: all rows of the first view, then all rows of the second, and so on.

    `rows` selects the rows of the host's model call that the batch evaluates. `c_concat` can have more rows than this
    call, because the webui does not shorten it if it skips the uncond. `size` is the size of the whole latent, and
    `crop_size` is the size of the views. Only `c_concat` is cropped. All other tensors are repeated for each view.
    Values that are not tensors do not change.

    Always returns a new dict, because the host's apply_model replaces entries of its argument with cast tensors
    (modules/sd_hijack_unet.py).
    """

    def for_views(key: str, value: Any) -> Any:
        if isinstance(value, list):
            return [for_views(key, entry) for entry in value]
        if not isinstance(value, Tensor) or value.ndim == 0:
            return value
        value = value[rows]
        if key == SPATIAL and _is_spatial(value):
            return _image_for_views(value, views, size, crop_size)
        return _repeated(value, len(views))

    return {key: for_views(key, value) for key, value in cond.items()}


def _image_for_views(value: Tensor, views: Sequence[View], size: Size, crop_size: Size) -> Tensor:
    """Crops an image condition (N, C, H, W) for each view if it has the size of the latent.

    An image condition of any other size is resized to the size of a view, and every view gets the whole image.
    """
    if tuple(value.shape[-2:]) == size:
        return torch.cat([view.take(value) for view in views])
    if tuple(value.shape[-2:]) != crop_size:
        # in txt2img, the condition of an inpainting model has the size of the base image: gray, and masked everywhere
        value = F.interpolate(value, crop_size, mode="nearest")
    return _repeated(value, len(views))


def _repeated(value: Tensor, times: int) -> Tensor:
    return value.repeat(times, *(1 for _ in value.shape[1:])) if times > 1 else value


def image_conditioning_for(conditioning: Tensor, anchor: Tensor, crop: LocalView | None) -> Tensor:
    """Resizes the image conditioning of the base image to the size of `anchor` (B, C, H, W).

    `crop` is the part of the base image that the stage shows, or None for the whole image. For an inpainting model, the
    first channel is the mask. It is resized without interpolation, so its edge stays sharp. All other channels are
    resized like an upscaled latent (see `make_anchor`). A conditioning that is not an image does not change.
    """
    if not _is_spatial(conditioning):
        return conditioning
    shown = conditioning if crop is None else crop.take(conditioning)
    size = (anchor.shape[-2], anchor.shape[-1])
    smooth = F.interpolate(shown, size, mode="bicubic", align_corners=False)
    if conditioning.shape[1] == anchor.shape[1] + 1:
        smooth[:, :1] = F.interpolate(shown[:, :1], size, mode="nearest")
    return smooth


def _is_spatial(value: Tensor) -> bool:
    """Returns whether a conditioning is an image.

    For models without image conditioning, the webui passes a tensor with a height and width of one cell.
    """
    return value.ndim == 4 and value.shape[-2:] != (1, 1)


def conds_of_stage(conds: Any, whole: int, run: int) -> Any:
    """Shifts the steps at which a prompt such as [a:b:0.5] changes.

    After the shift, the prompt changes in a stage at about the same noise level as in the base pass. A stage makes only
    the last `run` model calls of a schedule of `whole` calls. The shift is necessary because the webui numbers the
    calls of a stage from zero.

    `conds` is the cond or the uncond from the webui's `get_conds`. The uncond is None in Forge and Forge Neo at a CFG
    scale of 1. None is returned unchanged, and so is a tensor, because it contains no steps.
    """
    if conds is None or isinstance(conds, Tensor):
        return conds
    if hasattr(conds, "batch"):
        parts = [[_part_of_stage(part, whole, run) for part in parts] for parts in conds.batch]
        return type(conds)(conds.shape, parts)
    return [_schedules_of_stage(schedules, whole, run) for schedules in conds]


def _part_of_stage(part: Any, whole: int, run: int) -> Any:
    """Shifts the changes of one part of an image's prompt. The parts of a prompt are joined by AND."""
    return type(part)(_schedules_of_stage(part.schedules, whole, run), part.weight)


def _schedules_of_stage(schedules: Sequence[Any], whole: int, run: int) -> list[Any]:
    total = schedules[-1].end_at_step
    # an entry that ends before the stage begins gets a negative end, so no model call of the stage uses the entry
    return [s._replace(end_at_step=s.end_at_step * whole / max(total, 1) - (whole - run)) for s in schedules]


CROP = "crop_coords_top_left"
SIZES = ("original_size_as_tuple", "target_size_as_tuple")

NUMBERS = {**dict.fromkeys((CROP, *SIZES), 2), "aesthetic_score": 1}
"""The number of values that the host passes to the embedder of each key (modules/sd_models_xl.py)."""


@dataclass(frozen=True)
class Frame:
    """The numbers in pixels that are the same in the vectors of all views."""

    size: Size
    """Height and width of the final image. They are the original size and the target size of every view."""
    origin: Size = (0, 0)
    """Top and left from the user's settings "crop top" and "crop left" for SDXL.

    They are added to the position of each view.
    """


class SizeVectors:
    """Writes sizes and crops into the vectors of views.

    The model's embedders compute only the parts for sizes and crops. The prompts are not encoded again.
    """

    def __init__(self, embedders: Sequence[Any], frame: Frame):
        self._embedders = embedders
        self._frame = frame
        self._size_rows: dict[str, Tensor] = {}
        self._crops: tuple[Tensor, Tensor] | None = None

    def for_views(self, vector: Tensor, views: Sequence[View]) -> Tensor:
        """Returns the vectors (V * N, D) of V views from the vectors (N, D) of the whole latent.

        The vectors of all rows of the first view come first.
        """
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
        """Returns the embeddings (n, d / 2) of all possible top positions, and of all possible left positions.

        The first d / 2 columns of an embedding depend only on the top position, and the others only on the left
        position. All positions are embedded in advance, because nearly every view has a new position with jitter. If
        each position were embedded when it is needed, each position would also be copied to the device, and each copy
        would wait for the device's queue.
        """
        top, left = self._frame.origin
        cells = range(max(self._frame.size) // CELL + 1)
        made = _embedded(embedder, [(top + cell * CELL, left + cell * CELL) for cell in cells], like)
        tops, lefts = made.chunk(2, dim=1)
        return tops, lefts


def _embedded(embedder: Any, numbers: Sequence[Size], like: Tensor) -> Tensor:
    """Returns the embeddings (n, d) of n pairs of numbers."""
    embedded: Tensor = embedder(torch.tensor(numbers, dtype=torch.float32, device=like.device))
    return embedded.to(like)


def number_slots(embedders: Sequence[Any], width: int) -> dict[str, tuple[Any, slice]]:
    """Finds the embedders of sizes, crops and scores, and their columns in a vector of `width` columns.

    Returns a dict from the key of an embedder (see `NUMBERS`) to the embedder and its columns. The conditioner joins
    the outputs of its embedders in order. The vector begins with a text embedding, whose number of columns is not
    stored anywhere (1280 in SDXL, 0 in some small models). The columns are therefore counted from the end of the
    vector.
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
    """Returns the SizeVectors for one of the host's models, or None if the model has no embedders."""
    embedders = getattr(getattr(model, "conditioner", None), "embedders", None)
    return SizeVectors(list(embedders), frame) if embedders is not None else None
