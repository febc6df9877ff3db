"""Tests the control images (hints) that views receive.

A local view must get its part of the hint. A dilated view must get the whole hint, shifted to the positions of its
cells. All hints must have 8x8 pixels per cell of the view.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lib_demofusion.method.control_hints import make_stage_hint, resize_hint, shown_part
from lib_demofusion.method.views import LocalView, Size, dilated_size, dilated_views, local_views

CELL = 8


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def ramp(size: Size, axis: int, per_pixel: float = 1.0) -> Tensor:
    """Returns a hint (1, 3, h, w) in which each pixel contains its own position along one axis.

    The position is measured at the center of the pixel and multiplied by `per_pixel`.
    """
    place = (torch.arange(size[axis]) + 0.5) * per_pixel
    plane = place[:, None].expand(size) if axis == 0 else place.expand(size)
    return plane.expand(1, 3, *size).clone()


def in_cells(hint: Tensor) -> Tensor:
    """Returns the mean of the hint in each cell of 8x8 pixels."""
    return F.avg_pool2d(hint, CELL)


def fused(stage_hint, size: Size, views) -> Tensor:  # type: ignore[no-untyped-def]
    """Returns the hint (1, 3, H, W) that the views receive at each cell of the latent of `size`.

    Where views overlap, the result is the mean of their hints.
    """
    total, count = torch.zeros(1, 3, *size), torch.zeros(1, 3, *size)
    for view in views:
        seen = in_cells(stage_hint.for_view(view))
        view.add_to(total, seen)
        view.add_to(count, torch.ones_like(seen))
    return total / count


@pytest.mark.parametrize("size", [(32, 24), (40, 24), (33, 25)])
def test_local_views_get_their_part_of_the_large_hint(size: Size) -> None:
    hint = make_stage_hint(randn(1, 3, 128, 96), size, 2)
    assert hint.large.shape == (1, 3, CELL * size[0], CELL * size[1])
    for view in local_views(size, (16, 12), (8, 6), torch.Generator().manual_seed(3)):
        part = hint.for_view(view)
        assert part.shape == (1, 3, 128, 96)
        torch.testing.assert_close(in_cells(part), view.take(in_cells(hint.large)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("base", "factor"), [((16, 12), 2), ((16, 12), 4), ((15, 11), 2)])
def test_dilated_views_get_the_hint_at_the_positions_of_their_cells(base: Size, factor: int, axis: int) -> None:
    """At whole scales, the hint at a cell must equal the position of the center of this cell in the base image.

    The cells at the borders of the latent are not compared.
    """
    size = base[0] * factor, base[1] * factor
    hint = make_stage_hint(ramp((CELL * base[0], CELL * base[1]), axis), size, factor)
    made = fused(hint, size, dilated_views(size, factor))
    expected = in_cells(ramp((CELL * size[0], CELL * size[1]), axis, 1 / factor))
    inside = (..., slice(factor, -factor), slice(factor, -factor))
    torch.testing.assert_close(made[inside], expected[inside], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("base", "scale", "factor"), [((16, 16), 3, 3), ((16, 12), 2.5, 3), ((16, 16), 1.5, 2)])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_position_error_of_a_hint_is_at_most_one_pixel(base: Size, scale: float, factor: int, axis: int) -> None:
    """The hint is shifted by whole pixels of the view, so the rounding can cause an error of half a pixel.

    The size of the hint for dilated views is also rounded, which can cause another error of half a pixel.
    """
    size = math.ceil(base[0] * scale), math.ceil(base[1] * scale)
    hint = make_stage_hint(ramp((CELL * base[0], CELL * base[1]), axis), size, factor)
    made = fused(hint, size, dilated_views(size, factor))
    pixel = CELL * base[axis] / hint.small.shape[-2:][axis]
    expected = in_cells(ramp((CELL * size[0], CELL * size[1]), axis, base[axis] / size[axis]))
    inside = (..., slice(2 * factor, -2 * factor), slice(2 * factor, -2 * factor))
    assert (made[inside] - expected[inside]).abs().max() <= pixel * 1.01


def test_the_position_error_without_the_shift_of_the_hint_is_more_than_four_times_as_large() -> None:
    base, factor = (16, 16), 3
    size = base[0] * factor, base[1] * factor
    native = ramp((CELL * base[0], CELL * base[1]), 0)
    expected = in_cells(ramp((CELL * size[0], CELL * size[1]), 0, 1 / factor))
    views = dilated_views(size, factor)
    moved = fused(make_stage_hint(native, size, factor), size, views)
    unmoved = torch.zeros(1, 3, *size)
    for view in views:
        view.add_to(unmoved, in_cells(native))
    inside = (..., slice(3, -3), slice(3, -3))
    error, error_without_shift = ((value - expected)[inside].abs().max() for value in (moved, unmoved))
    assert error < error_without_shift / 4


@pytest.mark.parametrize("size", [(33, 25), (35, 24), (31, 23)])
@pytest.mark.parametrize("factor", [2, 3])
def test_the_hint_of_every_dilated_view_has_the_size_of_the_view(size: Size, factor: int) -> None:
    hint = make_stage_hint(randn(1, 3, 128, 96), size, factor)
    height, width = dilated_size(size, factor)
    for view in dilated_views(size, factor):
        assert hint.for_view(view).shape == (1, 3, CELL * height, CELL * width)


def test_the_hints_of_dilated_views_contain_no_new_colors() -> None:
    """In a segmentation map, every color stands for a class. A mixture of two colors would stand for a wrong class."""
    classes = randn(1, 3, 128, 128).sign()
    hint = make_stage_hint(classes, (48, 48), 3)
    for view in dilated_views((48, 48), 3):
        assert set(hint.for_view(view).unique().tolist()) == {-1.0, 1.0}


def test_a_resized_mask_stays_sharp_and_the_resized_colors_stay_in_their_range() -> None:
    hint = torch.cat([randn(1, 3, 64, 64).sigmoid(), (randn(1, 1, 64, 64) > 0).float()], dim=1)
    made = resize_hint(hint, (160, 200))
    assert made.shape == (1, 4, 160, 200)
    assert set(made[:, 3].unique().tolist()) == {0.0, 1.0}
    assert hint.min() <= made.min() < made.max() <= hint.max()
    assert resize_hint(hint, (64, 64)) is hint


@pytest.mark.parametrize(("pixels", "per_cell"), [((128, 96), 8), ((256, 192), 16)])
def test_a_hint_is_cropped_to_the_part_of_the_base_image_that_the_stages_show(pixels: Size, per_cell: int) -> None:
    hint = randn(1, 3, *pixels)
    made = shown_part(hint, LocalView(2, 3, 10, 6), (16, 12))
    torch.testing.assert_close(made, hint[..., 2 * per_cell : 12 * per_cell, 3 * per_cell : 9 * per_cell])


def test_another_resize_function_is_used_for_the_hints_of_local_and_of_dilated_views() -> None:
    asked: list[Size] = []

    def resize(hint: Tensor, size: Size) -> Tensor:
        asked.append(size)
        return hint.new_zeros(1, 3, *size)

    make_stage_hint(randn(1, 3, 64, 64), (20, 24), 3, resize)
    assert asked == [(160, 192), (53, 64)]
