"""Defines the views of a large latent: overlapping tiles and dilated views of about the model's native size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]
"""A height and a width in latent cells."""


@dataclass(frozen=True)
class LocalView:
    """A rectangle of the latent. Its position and size are in cells."""

    top: int
    left: int
    height: int
    width: int

    @property
    def crop_size(self) -> Size:
        """Returns the size of the crop that `take` returns."""
        return self.height, self.width

    def times(self, factor: int) -> LocalView:
        """Returns the rectangle with all numbers multiplied by `factor`."""
        return LocalView(*(factor * n for n in (self.top, self.left, self.height, self.width)))

    def take(self, x: Tensor) -> Tensor:
        """Crops x (..., H, W) without copying."""
        return x[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def add_to(self, out: Tensor, values: Tensor, weight: float = 1.0) -> None:
        """Adds weight * `values` (..., height, width) to the cells of this view in `out` (..., H, W)."""
        self.take(out).add_(values, alpha=weight)


@dataclass(frozen=True)
class DilatedView:
    """Every `factor`-th cell of a padded latent in both directions, starting at the cell (`row`, `column`).

    The latent of size `size` is padded with zeros at the top and left, so that its sides are multiples of `factor`
    times `unit`. All dilated views therefore have the same size, and their sides are multiples of `unit`. The paper's
    code pads in the same way, with a unit of 1.
    """

    row: int
    column: int
    factor: int
    size: Size
    unit: int = 1

    @property
    def crop_size(self) -> Size:
        """Returns the size of the crop that `take` returns."""
        return dilated_size(self.size, self.factor, self.unit)

    def take(self, x: Tensor) -> Tensor:
        """Returns the view's cells of x (..., H, W). Cells in the padding are zero."""
        cells, lead_rows, lead_columns = self._cells(x)
        return F.pad(cells, (lead_columns, 0, lead_rows, 0)) if lead_rows or lead_columns else cells

    def add_to(self, out: Tensor, values: Tensor, weight: float = 1.0) -> None:
        """Adds weight * `values`, in the shape that `take` returns, to the cells of this view in `out` (..., H, W)."""
        cells, lead_rows, lead_columns = self._cells(out)
        cells.add_(values[..., lead_rows:, lead_columns:], alpha=weight)

    def _cells(self, x: Tensor) -> tuple[Tensor, int, int]:
        (top, lead_rows), (left, lead_columns) = self._first_cell(0), self._first_cell(1)
        return x[..., top :: self.factor, left :: self.factor], lead_rows, lead_columns

    def _first_cell(self, axis: int) -> tuple[int, int]:
        """Returns the position of the view's first cell inside the latent, and its number of cells in the padding."""
        offset = self.offset(axis)
        lead = max(-(offset // self.factor), 0)
        return offset + lead * self.factor, lead

    def offset(self, axis: int) -> int:
        """Returns the position of the view's first cell along an axis. In the padding, positions are negative."""
        padding = -self.size[axis] % (self.factor * self.unit)
        return (self.row, self.column)[axis] - padding


View = LocalView | DilatedView


def view_starts(length: int, window: int, stride: int, unit: int = 1) -> list[int]:
    """Returns the start positions of views along one axis: evenly spaced, at most `stride` apart, as few as possible.

    In the paper's code, the stride is constant, and only the last view is moved back. With even spacing, the same
    number of views overlaps more. If all arguments are multiples of `unit`, the positions are multiples of `unit` too.
    """
    if unit > 1:
        return [unit * start for start in view_starts(length // unit, window // unit, max(stride // unit, 1))]
    gaps = max(-((window - length) // stride), 0)
    return [(2 * i * (length - window) + gaps) // (2 * gaps) for i in range(gaps + 1)] if gaps else [0]


def jitter_range(window: int, stride: int) -> int:
    """Returns the maximum shift of a view along one axis, as in the paper's code.

    After their shifts, adjacent views still overlap by at least half of `window` - `stride`.
    """
    return (window - stride) // 4


def local_views(
    size: Size, window: Size, stride: Size, generator: torch.Generator | None = None, unit: int = 1
) -> list[LocalView]:
    """Returns overlapping views that cover a latent of `size`, row by row from the top left.

    With a generator, each view is shifted randomly by up to `jitter_range` along every axis on which it does not touch
    a border. Shifted views do not leave the latent, and together they still cover every cell. If `size`, `window` and
    `stride` are multiples of `unit`, the sides of the views are too. Shifts are not rounded to multiples of `unit`.
    """
    rows = view_starts(size[0], window[0], stride[0], unit)
    columns = view_starts(size[1], window[1], stride[1], unit)
    shifts = _shifts(rows, columns, window, stride, generator)
    return [
        LocalView(
            min(max(top + shifts[i][j][0], 0), rows[-1]),
            min(max(left + shifts[i][j][1], 0), columns[-1]),
            min(window[0], size[0]),
            min(window[1], size[1]),
        )
        for i, top in enumerate(rows)
        for j, left in enumerate(columns)
    ]


def _shifts(
    rows: list[int], columns: list[int], window: Size, stride: Size, generator: torch.Generator | None
) -> list[list[list[int]]]:
    """Returns the (vertical, horizontal) shift of each view."""
    shifts = torch.zeros(len(rows), len(columns), 2, dtype=torch.int64)
    if generator is not None:
        for axis in (0, 1):
            reach = jitter_range(window[axis], stride[axis])
            shifts[..., axis] = torch.randint(-reach, reach + 1, shifts.shape[:2], generator=generator)
    shifts[[0, -1], :, 0] = 0
    shifts[:, [0, -1], 1] = 0
    return shifts.tolist()


def jitter_generator(stage: int, step: int) -> torch.Generator:
    """Returns the random generator for the shifts of one step.

    The seed depends only on the numbers of the stage and the step, so an image is the same alone and in a batch.
    """
    return torch.Generator().manual_seed(1_000_003 * stage + step)


def dilated_views(size: Size, factor: int, unit: int = 1) -> list[DilatedView]:
    """Returns the factor x factor dilated views of a latent of `size`. Together they contain every cell once."""
    return [DilatedView(row, column, factor, size, unit) for row in range(factor) for column in range(factor)]


def dilated_size(size: Size, factor: int, unit: int = 1) -> Size:
    """Returns the size of one dilated view. Its sides are multiples of `unit`."""
    rows, columns = (unit * -(-side // (factor * unit)) for side in size)
    return rows, columns


def taper(size: Size, feather: float, device: torch.device | None = None) -> Tensor:
    """Returns the weights (h, w) of a view's cells, which fall linearly towards the borders of the view.

    `feather` is the fraction of a side over which the weights fall at each end. The weight of a cell is the product of
    a weight for its row and a weight for its column. The outermost cells keep some weight, because no other view covers
    them at the borders of the latent. With a `feather` of 0, all weights are 1.
    """
    rows, columns = (_ramp(length, feather, device) for length in size)
    return rows[:, None] * columns


def _ramp(length: int, feather: float, device: torch.device | None) -> Tensor:
    reach = int(feather * length + 0.5)
    place = torch.arange(length, dtype=torch.float32, device=device)
    return (torch.minimum(place, length - 1 - place) + 1).div(reach + 1).clamp_max(1)
