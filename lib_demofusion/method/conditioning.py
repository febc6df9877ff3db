"""Conditions for a batch of views, from the conditions of the whole latent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_demofusion.method.views import LocalView, Size, View

Cond = Mapping[str, Any]
"""The conditions that the host passes to its model by key: tensors, or lists of one tensor."""

SPATIAL = "c_concat"
"""The key of the only condition that is an image. Other conditions can also have four axes, such as Krea 2's text."""


def cond_for_views(cond: Cond, views: Sequence[View], rows: slice, size: Size, crop_size: Size) -> dict[str, Any]:
    """Returns the cond of a batch of views, view-major like the crops. `size` is the size of the whole latent.

    Selects the given rows of each tensor. `c_concat` has too many rows if the host skips the uncond. Only `c_concat` is
    cropped; all other conditions are repeated for each view.

    The dict is always a new one, because the host's apply_model writes cast tensors back to its argument
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
    """Crops an image condition (N, C, H, W) like the latent, or resizes it if it does not have the latent's size."""
    if tuple(value.shape[-2:]) == size:
        return torch.cat([view.take(value) for view in views])
    if tuple(value.shape[-2:]) != crop_size:
        # an inpainting model's "everything is masked" condition has the base image's size
        value = F.interpolate(value, crop_size, mode="nearest")
    return _repeated(value, len(views))


def _repeated(value: Tensor, times: int) -> Tensor:
    return value.repeat(times, *(1 for _ in value.shape[1:])) if times > 1 else value


def image_conditioning_for(conditioning: Tensor, anchor: Tensor, crop: LocalView | None) -> Tensor:
    """Returns the base image's image conditioning at the size of `anchor` (B, C, H, W).

    `crop` is the part of the base image that the stage shows, or None for all of it. Latents and depth are resized like
    the anchor. The first channel of an inpainting model is its mask, which keeps its sharp edge.
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
    """Returns whether the conditioning is an image. Models without image conditioning get a single cell."""
    return value.ndim == 4 and value.shape[-2:] != (1, 1)


def conds_of_stage(conds: Any, whole: int, run: int) -> Any:
    """Shifts the switches of a prompt ([a:b:0.5]) so that a stage switches at the same noise level as the base image.

    The host's switches refer to all calls of the base image's schedule, counted from zero. A stage makes only the last
    `run` calls of a schedule of `whole` calls. `conds` is the cond or the uncond from `get_conds`. The uncond is None
    in Forge and Forge Neo at a CFG scale of 1.
    """
    if conds is None or isinstance(conds, Tensor):
        return conds
    if hasattr(conds, "batch"):
        parts = [[_part_of_stage(part, whole, run) for part in parts] for parts in conds.batch]
        return type(conds)(conds.shape, parts)
    return [_schedules_of_stage(schedules, whole, run) for schedules in conds]


def _part_of_stage(part: Any, whole: int, run: int) -> Any:
    """Shifts the switches of one of the prompts that AND joins."""
    return type(part)(_schedules_of_stage(part.schedules, whole, run), part.weight)


def _schedules_of_stage(schedules: Sequence[Any], whole: int, run: int) -> list[Any]:
    total = schedules[-1].end_at_step
    # entries that end before the stage begins get a negative end, so no call uses them
    return [s._replace(end_at_step=s.end_at_step * whole / max(total, 1) - (whole - run)) for s in schedules]
