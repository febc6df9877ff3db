"""Conditions for a batch of views, from the conditions of the whole latent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_demofusion.views import Size, View

Cond = Mapping[str, Any]
"""What the host hands its model: tensors, or lists of one tensor, by key."""


def cond_for_views(cond: Cond, views: Sequence[View], rows: slice, size: Size, crop_size: Size) -> dict[str, Any]:
    """Returns the cond of a batch of views, view-major like the crops; `size` is that of the whole latent.

    Of each tensor the given rows are taken; `c_concat` has rows too many when the host skips the uncond.

    The dict is always a new one: the host's apply_model writes casts back into the one that it is given
    (modules/sd_hijack_unet.py).
    """

    def for_views(value: Any) -> Any:
        if isinstance(value, list):
            return [for_views(entry) for entry in value]
        return _tensor_for_views(value[rows], views, size, crop_size) if isinstance(value, Tensor) else value

    return {key: for_views(value) for key, value in cond.items()}


def _tensor_for_views(value: Tensor, views: Sequence[View], size: Size, crop_size: Size) -> Tensor:
    """Spatial conditions of the latent's size are cut like the latent; what has no place is repeated for each view."""
    spatial = value.ndim == 4 and value.shape[-2:] != (1, 1)
    if spatial and tuple(value.shape[-2:]) == size:
        return torch.cat([view.take(value) for view in views])
    if spatial and tuple(value.shape[-2:]) != crop_size:
        # an inpainting model's "everything is masked" condition stands at the base picture's size
        value = F.interpolate(value, crop_size, mode="nearest")
    return value.repeat(len(views), *(1 for _ in value.shape[1:])) if len(views) > 1 else value
