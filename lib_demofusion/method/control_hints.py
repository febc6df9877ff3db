"""Crops control images, such as ControlNet's hints, to the views."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_demofusion.method.plan import CELL
from lib_demofusion.method.views import DilatedView, LocalView, Size, View

Resize = Callable[[Tensor, Size], Tensor]
"""Resizes a hint (1, C, h, w) to a height and width in pixels."""

COLOURS = 3
"""Number of color channels of a hint. A fourth channel is a mask."""


def resize_hint(hint: Tensor, size: Size) -> Tensor:
    """Resizes a hint (1, C, h, w) to a size in pixels. Colors stay in their range, and a mask keeps its sharp edge."""
    if tuple(hint.shape[-2:]) == size:
        return hint
    shrinks = hint.shape[-2] > size[0] or hint.shape[-1] > size[1]
    colours = F.interpolate(hint[:, :COLOURS].float(), size, mode="bicubic", align_corners=False, antialias=shrinks)
    colours = colours.clamp(float(hint.min()), float(hint.max())).to(hint.dtype)
    if hint.shape[1] <= COLOURS:
        return colours
    return torch.cat([colours, F.interpolate(hint[:, COLOURS:], size, mode="nearest")], dim=1)


def shown_part(hint: Tensor, crop: LocalView, base: Size) -> Tensor:
    """Crops a hint (..., h, w) to the part that covers `crop` in a base image of `base` cells."""
    rows, columns = hint.shape[-2] / base[0], hint.shape[-1] / base[1]
    top, bottom = round(crop.top * rows), round((crop.top + crop.height) * rows)
    left, right = round(crop.left * columns), round((crop.left + crop.width) * columns)
    return hint[..., top:bottom, left:right]


@dataclass(frozen=True)
class StageHint:
    """One hint for one stage, at the two sizes that the views of the stage use. It is cropped for each batch."""

    large: Tensor
    """The hint (1, C, H, W) at the size of the stage's image, for local views."""
    small: Tensor
    """The hint (1, C, H / factor, W / factor) at the size of a dilated view, which shows the whole image."""

    def for_view(self, view: View) -> Tensor:
        """Returns the part (1, C, h, w) of the hint for a view, with eight pixels per cell."""
        if isinstance(view, LocalView):
            return LocalView(*(CELL * n for n in (view.top, view.left, view.height, view.width))).take(self.large)
        rows, columns = (_dilated_pixels(view, axis, self.small) for axis in (0, 1))
        return self.small[..., rows[:, None], columns]


def make_stage_hint(hint: Tensor, size: Size, factor: int, resize: Resize = resize_hint) -> StageHint:
    """Prepares a hint (1, C, h, w) of the whole image for a stage of `size` cells and its dilated views."""
    height, width = (CELL * n for n in size)
    return StageHint(resize(hint, (height, width)), resize(hint, (round(height / factor), round(width / factor))))


def _dilated_pixels(view: DilatedView, axis: int, small: Tensor) -> Tensor:
    """Returns the row (axis 0) or column (axis 1) of `small` for each pixel of a dilated view.

    The center of cell i of the view is the center of cell `offset + i * factor` of the latent. The view is therefore
    shifted by up to half a cell relative to the whole image. If all views used the same hint, each view would draw it
    in a different place, and straight edges would become jagged.

    Two alternatives are worse. The paper's code takes every factor-th pixel of the large hint, which applies only a
    fraction of this shift. Every factor-th block of 8 x 8 pixels would have the correct shift, but adjacent blocks
    would not fit together.

    This function shifts the hint by whole pixels. Lines stay sharp, and colors that encode a class stay exact. The
    position is correct to a sixteenth of a cell.
    """
    factor = view.factor
    shift = round((CELL * view.offset(axis) + CELL / 2 * (1 - factor)) / factor)
    pixels = torch.arange(CELL * view.crop_size[axis], device=small.device) + shift
    return pixels.clamp(0, small.shape[-2:][axis] - 1)
