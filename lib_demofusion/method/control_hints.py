"""Crops hints to the views. A hint is an image that guides a ControlNet, for example a drawing of edges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_demofusion.method.plan import CELL
from lib_demofusion.method.views import DilatedView, LocalView, Size, View

Resize = Callable[[Tensor, Size], Tensor]
"""A function that resizes a hint (B, C, h, w) to a height and width in pixels."""

COLOR_CHANNELS = 3
"""Number of color channels of a hint. If a hint has a fourth channel, this channel is a mask."""


def resize_hint(hint: Tensor, size: Size) -> Tensor:
    """Resizes hints (B, C, h, w) to a size in pixels.

    The colors of each hint are clamped to the range of the original hint. The mask is resized without interpolation.
    """
    if tuple(hint.shape[-2:]) == size:
        return hint
    shrinks = hint.shape[-2] > size[0] or hint.shape[-1] > size[1]
    colours = F.interpolate(
        hint[:, :COLOR_CHANNELS].float(), size, mode="bicubic", align_corners=False, antialias=shrinks
    )
    lowest, highest = hint.amin((1, 2, 3), keepdim=True), hint.amax((1, 2, 3), keepdim=True)
    colours = colours.clamp(lowest, highest).to(hint.dtype)
    if hint.shape[1] <= COLOR_CHANNELS:
        return colours
    return torch.cat([colours, F.interpolate(hint[:, COLOR_CHANNELS:], size, mode="nearest")], dim=1)


def shown_part(hint: Tensor, crop: LocalView, base: Size) -> Tensor:
    """Crops a hint (..., h, w) of the whole base image to the part `crop` of the base image.

    `base` is the size of the base image in cells. The hint can have any number of pixels per cell.
    """
    rows, columns = hint.shape[-2] / base[0], hint.shape[-1] / base[1]
    top, bottom = round(crop.top * rows), round((crop.top + crop.height) * rows)
    left, right = round(crop.left * columns), round((crop.left + crop.width) * columns)
    return hint[..., top:bottom, left:right]


@dataclass(frozen=True)
class StageHint:
    """One hint for one stage, resized for local views and for dilated views."""

    large: Tensor
    """The hint (B, C, H, W) at the size of the stage's image. Local views get a part of it."""
    small: Tensor
    """The hint (B, C, H / factor, W / factor).

    Each dilated view gets the whole hint with a small shift (see `_dilated_pixels`).
    """

    def for_view(self, view: View) -> Tensor:
        """Returns the hint (B, C, h, w) of a view, with 8x8 pixels per cell of the view."""
        if isinstance(view, LocalView):
            return LocalView(*(CELL * n for n in (view.top, view.left, view.height, view.width))).take(self.large)
        rows, columns = (_dilated_pixels(view, axis, self.small) for axis in (0, 1))
        return self.small[..., rows[:, None], columns]


def make_stage_hint(hint: Tensor, size: Size, factor: int, resize: Resize = resize_hint) -> StageHint:
    """Resizes a hint (B, C, h, w) of the whole image for a stage of `size` cells with dilated views of `factor`."""
    height, width = (CELL * n for n in size)
    return StageHint(resize(hint, (height, width)), resize(hint, (round(height / factor), round(width / factor))))


def _dilated_pixels(view: DilatedView, axis: int, small: Tensor) -> Tensor:
    """Returns the row (axis 0) or column (axis 1) of `small` for each pixel of a dilated view.

    The center of cell i of the view is the center of cell `offset + i * factor` of the latent. Compared to the whole
    image at the size of a view, the view is therefore shifted by a fraction of a cell. If all views used the same hint,
    each view would draw the hint in a different place of the large image, and straight edges would become jagged.

    Two alternatives are worse. The paper's code takes every factor-th pixel of the large hint. The hints of views with
    adjacent offsets are then one pixel apart, and not one cell, so the shift is only an eighth of what is needed. Every
    factor-th block of 8 x 8 pixels would have the correct shift, but adjacent blocks would not fit together.

    This function shifts the hint by whole pixels. Lines stay sharp, and colors that encode a class do not change. The
    rounding to whole pixels changes the position by at most a sixteenth of a cell.
    """
    factor = view.factor
    shift = round((CELL * view.offset(axis) + CELL / 2 * (1 - factor)) / factor)
    pixels = torch.arange(CELL * view.crop_size[axis], device=small.device) + shift
    return pixels.clamp(0, small.shape[-2:][axis] - 1)
