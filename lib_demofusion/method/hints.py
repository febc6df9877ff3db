"""Images that steer a model beside its latent, as ControlNet's hints do: each view must see its own part of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_demofusion.method.plan import CELL
from lib_demofusion.method.views import DilatedView, LocalView, Size, View

Resize = Callable[[Tensor, Size], Tensor]
"""Brings a hint (1, C, h, w) to a height and width in pixels."""

COLOURS = 3
"""Channels of a hint that are colours; one behind them is a mask."""


def resize_hint(hint: Tensor, size: Size) -> Tensor:
    """Returns a hint (1, C, h, w) at another size in pixels, within its own range; a mask keeps its sharp edge."""
    if tuple(hint.shape[-2:]) == size:
        return hint
    shrinks = hint.shape[-2] > size[0] or hint.shape[-1] > size[1]
    colours = F.interpolate(hint[:, :COLOURS].float(), size, mode="bicubic", align_corners=False, antialias=shrinks)
    colours = colours.clamp(float(hint.min()), float(hint.max())).to(hint.dtype)
    if hint.shape[1] <= COLOURS:
        return colours
    return torch.cat([colours, F.interpolate(hint[:, COLOURS:], size, mode="nearest")], dim=1)


def shown_part(hint: Tensor, crop: LocalView, base: Size) -> Tensor:
    """Returns what of a hint (..., h, w) lies over the part `crop` of a base of so many cells."""
    rows, columns = hint.shape[-2] / base[0], hint.shape[-1] / base[1]
    top, bottom = round(crop.top * rows), round((crop.top + crop.height) * rows)
    left, right = round(crop.left * columns), round((crop.left + crop.width) * columns)
    return hint[..., top:bottom, left:right]


@dataclass(frozen=True)
class StageHint:
    """One hint during one stage, at the two sizes that its views have it in: what they see is cut out when needed."""

    large: Tensor
    """(1, C, H, W), as large as the stage's image; local views are cut out of it."""
    small: Tensor
    """(1, C, H / factor, W / factor), the whole image as large as a dilated view shows it."""

    def for_view(self, view: View) -> Tensor:
        """Returns the view's part (1, C, h, w), eight pixels for each of its cells."""
        if isinstance(view, LocalView):
            return LocalView(*(CELL * n for n in (view.top, view.left, view.height, view.width))).take(self.large)
        rows, columns = (_dilated_pixels(view, axis, self.small) for axis in (0, 1))
        return self.small[..., rows[:, None], columns]


def make_stage_hint(hint: Tensor, size: Size, factor: int, resize: Resize = resize_hint) -> StageHint:
    """Returns a hint (1, C, h, w) of the whole image for a stage of so many cells and dilated views."""
    height, width = (CELL * n for n in size)
    return StageHint(resize(hint, (height, width)), resize(hint, (round(height / factor), round(width / factor))))


def _dilated_pixels(view: DilatedView, axis: int, small: Tensor) -> Tensor:
    """Returns the row (axis 0) or column (axis 1) of `small` that each pixel of a dilated view shows.

    The centre of the view's cell i is that of cell `first + i factor` of the latent, so against the whole image the
    view is moved by up to half a cell. Were all phases given the hint unmoved, each would draw it at its own place and
    an edge would come out as a comb of `factor` cells. Every factor-th pixel of the large hint, as the reference takes
    them, moves it by a fraction of that only; every factor-th block of 8 x 8 pixels moves it rightly, but is torn at
    the edges of the cells. It is moved by whole pixels here: a line stays as sharp, a colour that names a class
    stays that colour, and the place is right to a sixteenth of a cell.
    """
    factor = view.factor
    shift = round((CELL * view.offset(axis) + CELL / 2 * (1 - factor)) / factor)
    pixels = torch.arange(CELL * view.crop_size[axis], device=small.device) + shift
    return pixels.clamp(0, small.shape[-2:][axis] - 1)
