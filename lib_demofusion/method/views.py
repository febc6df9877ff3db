"""Defines the views of a large latent: overlapping local views (tiles) and dilated views.

`unit` is a number of cells that depends on the model. The sides of latents and views are multiples of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]
"""A height and a width in latent cells."""


@dataclass(frozen=True)
class LocalView:
    """A rectangle of the latent. Usually, its position and size are in latent cells."""

    top: int
    left: int
    height: int
    width: int

    @property
    def crop_size(self) -> Size:
        """Returns the size of the crop that `take` returns."""
        return self.height, self.width

    def times(self, factor: int) -> LocalView:
        """Returns the rectangle with its position and size multiplied by `factor`.

        For example, this converts a rectangle from cells to pixels.
        """
        return LocalView(*(factor * n for n in (self.top, self.left, self.height, self.width)))

    def take(self, x: Tensor) -> Tensor:
        """Returns the cells (..., height, width) of this view in x (..., H, W) without copying."""
        return x[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def add_to(self, out: Tensor, values: Tensor, weight: float = 1.0) -> None:
        """Adds weight * `values` (..., height, width) to the cells of this view in `out` (..., H, W)."""
        self.take(out).add_(values, alpha=weight)


@dataclass(frozen=True)
class DilatedView:
    """Every `factor`-th cell of a padded latent in both directions, starting at the cell (`row`, `column`).

    The latent without padding has the size `size`. It is padded with zeros at the top and left until its sides are
    multiples of `factor` * `unit`. All dilated views therefore have the same size, and their sides are multiples of
    `unit`. The paper's code pads in the same way, with a unit of 1.
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
        """Returns the cells of this view in x (..., H, W). Cells in the padding are zero."""
        cells, lead_rows, lead_columns = self._cells(x)
        return F.pad(cells, (lead_columns, 0, lead_rows, 0)) if lead_rows or lead_columns else cells

    def add_to(self, out: Tensor, values: Tensor, weight: float = 1.0) -> None:
        """Adds weight * `values` to the cells of this view in `out` (..., H, W).

        `values` has the shape of the tensor that `take` returns. Values in the padding are not used.
        """
        cells, lead_rows, lead_columns = self._cells(out)
        cells.add_(values[..., lead_rows:, lead_columns:], alpha=weight)

    def _cells(self, x: Tensor) -> tuple[Tensor, int, int]:
        (top, lead_rows), (left, lead_columns) = self._first_cell(0), self._first_cell(1)
        return x[..., top :: self.factor, left :: self.factor], lead_rows, lead_columns

    def _first_cell(self, axis: int) -> tuple[int, int]:
        """Returns two numbers for an axis (0 vertical, 1 horizontal).

        The first is the position of the first cell of the view that is not in the padding. The second is the number of
        cells of the view in the padding before this cell.
        """
        offset = self.offset(axis)
        lead = max(-(offset // self.factor), 0)
        return offset + lead * self.factor, lead

    def offset(self, axis: int) -> int:
        """Returns the position of the first cell of the view along an axis (0 vertical, 1 horizontal).

        The position 0 is the first cell of the latent without padding, so positions in the padding are negative.
        """
        padding = -self.size[axis] % (self.factor * self.unit)
        return (self.row, self.column)[axis] - padding


View = LocalView | DilatedView


def view_starts(length: int, window: int, stride: int, unit: int = 1) -> list[int]:
    """Returns the start positions of the local views along one axis.

    The number of views is the smallest with which adjacent positions are at most `stride` apart. The positions are
    evenly spaced. In the paper's code, the distance is exactly `stride`, except for the last view, which is moved back
    into the latent. Even spacing needs the same number of views, and the smallest overlap is the same or larger. If all
    arguments are multiples of `unit`, the positions are multiples of `unit` too.
    """
    if unit > 1:
        return [unit * start for start in view_starts(length // unit, window // unit, max(stride // unit, 1))]
    gaps = max(-((window - length) // stride), 0)
    return [(2 * i * (length - window) + gaps) // (2 * gaps) for i in range(gaps + 1)] if gaps else [0]


def jitter_range(window: int, stride: int) -> int:
    """Returns the maximum random shift of a local view along one axis, as in the paper's code.

    Before the shifts, adjacent views overlap by at least `window` - `stride`. After the shifts, they overlap by at
    least half as much.
    """
    return (window - stride) // 4


def local_views(
    size: Size, window: Size, stride: Size, generator: torch.Generator | None = None, unit: int = 1
) -> list[LocalView]:
    """Returns overlapping views that cover a latent of `size`, row by row from the top left.

    `window` is the size of a view, and `stride` is the maximum distance between adjacent views. If `size`, `window` and
    `stride` are multiples of `unit`, the sizes and positions of the views are multiples of `unit` too.

    With a generator, each view is shifted randomly by up to `jitter_range` cells in both directions. Views in the first
    and last row are not shifted vertically, and views in the first and last column are not shifted horizontally.
    Shifted views do not leave the latent, and together they still cover every cell. Shifts are not rounded to multiples
    of `unit`.
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
    """Returns the vertical and the horizontal shift of the view in each row and column."""
    shifts = torch.zeros(len(rows), len(columns), 2, dtype=torch.int64)
    if generator is not None:
        for axis in (0, 1):
            reach = jitter_range(window[axis], stride[axis])
            shifts[..., axis] = torch.randint(-reach, reach + 1, shifts.shape[:2], generator=generator)
    shifts[[0, -1], :, 0] = 0
    shifts[:, [0, -1], 1] = 0
    return shifts.tolist()


def jitter_generator(stage: int, call: int) -> torch.Generator:
    """Returns the random generator for the shifts of the local views in one model call.

    The seed depends only on the number of the stage and the number of the model call. An image is therefore the same
    whether it is sampled alone or in a batch.
    """
    return torch.Generator().manual_seed(1_000_003 * stage + call)


def dilated_views(size: Size, factor: int, unit: int = 1) -> list[DilatedView]:
    """Returns the factor x factor dilated views of a latent of `size`. Every cell belongs to exactly one of them."""
    return [DilatedView(row, column, factor, size, unit) for row in range(factor) for column in range(factor)]


def dilated_size(size: Size, factor: int, unit: int = 1) -> Size:
    """Returns the size of one dilated view of a latent of `size`. Both sides are multiples of `unit`."""
    rows, columns = (unit * -(-side // (factor * unit)) for side in size)
    return rows, columns


def taper(size: Size, feather: float, device: torch.device | None = None) -> Tensor:
    """Returns the weights (h, w) of the cells of a local view, which fall linearly towards the borders of the view.

    `feather` is the length of the ramp at each border, as a fraction of the height or width of the view. The weight of
    a cell is the product of a weight for its row and a weight for its column. The weights of the outermost cells are
    not zero, because at the borders of the latent no other view covers these cells. With a `feather` of 0, all weights
    are 1.
    """
    rows, columns = (_ramp(length, feather, device) for length in size)
    return rows[:, None] * columns


def _ramp(length: int, feather: float, device: torch.device | None) -> Tensor:
    reach = int(feather * length + 0.5)
    place = torch.arange(length, dtype=torch.float32, device=device)
    return (torch.minimum(place, length - 1 - place) + 1).div(reach + 1).clamp_max(1)
