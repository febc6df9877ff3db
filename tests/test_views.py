"""Tests local and dilated views.

The local views together contain every cell of the latent, and so do the dilated views. Local views stay inside the
latent, and their jitter depends only on the stage and the model call.
"""

from __future__ import annotations

import math
import random
from itertools import pairwise

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from fusing import evaluations
from hypothesis import example, given, settings
from torch import Tensor

from lib_demofusion.method.fusion import Feathering
from lib_demofusion.method.plan import StagePlan
from lib_demofusion.method.views import (
    LocalView,
    Size,
    dilated_size,
    dilated_views,
    jitter_generator,
    jitter_range,
    local_views,
    taper,
    view_starts,
)

EXAMPLES = settings(max_examples=150, deadline=None)


@st.composite
def axis_sizes(draw: st.DrawFn) -> tuple[int, int, int]:
    """Draws the length of a latent along one axis, the window and the stride. The length is one to eight windows."""
    window = draw(st.integers(1, 20))
    stride = draw(st.integers(1, window))
    # many views make a test slow, so there are at most 25 along one axis
    length = draw(st.integers(window, min(8 * window, window + 24 * stride)))
    return length, window, stride


@st.composite
def grids(draw: st.DrawFn) -> tuple[Size, Size, Size]:
    """Draws the size of a latent, the size of its views (the window), and the stride. They are usually not square."""
    (height, *vertical), (width, *horizontal) = draw(axis_sizes()), draw(axis_sizes())
    return (height, width), (vertical[0], horizontal[0]), (vertical[1], horizontal[1])


def count_by_hand(views: list[LocalView], size: Size) -> Tensor:
    """Returns the number of views that contain each cell of a latent of `size`."""
    count = torch.zeros(size)
    for view in views:
        count[view.top : view.top + view.height, view.left : view.left + view.width] += 1
    return count


def is_inside(view: LocalView, size: Size) -> bool:
    return 0 <= view.top <= size[0] - view.height and 0 <= view.left <= size[1] - view.width


CALLS = st.one_of(st.none(), st.integers(0, 200))
"""Draws the number of the model call, which determines the jitter, or None for views without jitter."""


def views_of(size: Size, window: Size, stride: Size, call: int | None) -> list[LocalView]:
    return local_views(size, window, stride, None if call is None else jitter_generator(1, call))


@EXAMPLES
@given(grid=grids(), call=CALLS)
@example(grid=((99, 64), (64, 64), (32, 32)), call=0)
@example(grid=((100, 129), (64, 64), (4, 8)), call=3)
@example(grid=((512, 65), (64, 64), (64, 64)), call=None)
def test_views_cover_every_cell_and_stay_inside(grid: tuple[Size, Size, Size], call: int | None) -> None:
    size, window, stride = grid
    views = views_of(size, window, stride, call)
    assert all(is_inside(view, size) for view in views)
    assert {(view.height, view.width) for view in views} == {window}
    count = count_by_hand(views, size)
    assert count.min() >= 1
    mean = torch.ones(size)
    Feathering().divide(mean, views, 1.0)
    assert torch.equal(mean, 1 / count)


@pytest.mark.parametrize(("window", "stride"), [(64, 32), (96, 48), (128, 64), (64, 40), (64, 63)])
def test_common_windows_cover_every_length_of_one_to_eight_windows(window: int, stride: int) -> None:
    """Tests one axis at a time, without jitter and with the jitter of two model calls."""
    for length in range(window, 8 * window + 1):
        for call in (None, length, length + 1):
            for size, windows, strides in (
                ((length, 2), (window, 2), (stride, 1)),
                ((2, length), (2, window), (1, stride)),
            ):
                views = views_of(size, windows, strides, call)
                assert all(is_inside(view, size) for view in views), (size, call)
                assert count_by_hand(views, size).min() >= 1, (size, call)


@pytest.mark.parametrize("feather", [0.0, 0.1, 0.25, 0.5])
def test_a_taper_is_symmetric_and_positive_and_does_not_increase_towards_the_borders(feather: float) -> None:
    weights = taper((16, 12), feather)
    assert torch.equal(weights, weights.flip(0))
    assert torch.equal(weights, weights.flip(1))
    assert weights.min() > 0
    assert weights.max() == weights[8, 6]
    assert torch.equal(weights, torch.ones(16, 12)) == (feather == 0)
    assert (weights[:8].diff(dim=0) >= 0).all()


def test_the_ramp_of_a_taper_is_linear() -> None:
    torch.testing.assert_close(taper((1, 8), 0.25)[0], torch.tensor([1, 2, 3, 3, 3, 3, 2, 1]) / 3)


def test_an_uncovered_cell_is_detected() -> None:
    views = views_of((128, 128), (64, 64), (32, 32), None)
    assert count_by_hand(views[1:], (128, 128)).min() == 0
    assert not is_inside(LocalView(65, 0, 64, 64), (128, 128))
    assert not is_inside(LocalView(0, -1, 64, 64), (128, 128))


@EXAMPLES
@given(grid=grids(), call=CALLS)
def test_the_number_of_views_equals_the_planned_number(grid: tuple[Size, Size, Size], call: int | None) -> None:
    size, window, stride = grid
    expected = math.prod(math.ceil((n - w) / s) + 1 for n, w, s in zip(size, window, stride))
    assert StagePlan(1, 2.0, size, 2, window, stride).local_count == expected
    assert len(views_of(size, window, stride, call)) == expected


@pytest.mark.parametrize(
    ("length", "window", "stride", "starts"),
    [
        (64, 64, 32, [0]),
        (65, 64, 32, [0, 1]),
        (96, 64, 32, [0, 32]),
        (97, 64, 32, [0, 17, 33]),
        (256, 128, 83, [0, 64, 128]),
        (128, 64, 64, [0, 64]),
        (10, 4, 3, [0, 3, 6]),
        (5, 8, 4, [0]),
    ],
)
def test_positions_of_views_along_one_axis_equal_examples(
    length: int, window: int, stride: int, starts: list[int]
) -> None:
    assert view_starts(length, window, stride) == starts


@EXAMPLES
@given(grid=grids())
def test_views_are_spread_evenly(grid: tuple[Size, Size, Size]) -> None:
    """Along each axis, the first view begins at one border, and the last view ends at the other border.

    If the distance between these two views is a multiple of the stride, all views have the positions of the paper.
    """
    for n, w, s in zip(*grid):
        starts = view_starts(n, w, s)
        gaps = [after - before for before, after in pairwise(starts)]
        assert (starts[0], starts[-1]) == (0, n - w)
        assert not gaps or (max(gaps) - min(gaps) <= 1 and max(gaps) <= s)
        if (n - w) % s == 0:
            assert starts == list(range(0, n - w + 1, s))


@EXAMPLES
@given(grid=grids(), call=st.integers(0, 200))
def test_jitter_stays_within_its_range(grid: tuple[Size, Size, Size], call: int) -> None:
    """A view moves by jitter_range at most. A view at a border of the latent does not move away from this border."""
    size, window, stride = grid
    plain, moved = views_of(size, window, stride, None), views_of(size, window, stride, call)
    for before, after in zip(plain, moved):
        places = ((before.top, after.top), (before.left, after.left))
        for (old, new), n, w, s in zip(places, size, window, stride):
            assert abs(new - old) <= jitter_range(w, s)
            if old in (0, n - w):
                assert new == old


@EXAMPLES
@given(grid=grids(), call=st.integers(0, 200))
def test_adjacent_views_overlap_after_jitter(grid: tuple[Size, Size, Size], call: int) -> None:
    """The overlap is at least (window - stride) / 2."""
    size, window, stride = grid
    columns = len(view_starts(size[1], window[1], stride[1]))
    views = views_of(size, window, stride, call)
    rows = [views[i : i + columns] for i in range(0, len(views), columns)]
    for row in rows:
        for left, right in pairwise(row):
            assert left.left + left.width - right.left >= (window[1] - stride[1]) / 2
    for upper_row, lower_row in pairwise(rows):
        for upper, lower in zip(upper_row, lower_row):
            assert upper.top + upper.height - lower.top >= (window[0] - stride[0]) / 2


BIG = ((256, 192), (64, 64), (32, 32))


def test_jitter_moves_views_along_both_axes_by_every_distance_in_its_range() -> None:
    plain = views_of(*BIG, None)
    rows, columns = set(), set()
    for call in range(40):
        for before, after in zip(plain, views_of(*BIG, call)):
            rows.add(after.top - before.top)
            columns.add(after.left - before.left)
    assert rows == columns == set(range(-8, 9))


def test_jitter_moves_views_by_different_distances() -> None:
    plain, moved = views_of(*BIG, None), views_of(*BIG, 0)
    assert len({(after.top - before.top, after.left - before.left) for before, after in zip(plain, moved)}) > 10


def test_jitter_depends_only_on_stage_and_model_call() -> None:
    def drawn(stage: int, call: int) -> list[LocalView]:
        return local_views(*BIG, jitter_generator(stage, call))

    first = drawn(2, 7)
    torch.manual_seed(1)
    random.seed(1)
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    assert drawn(2, 7) == first
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert drawn(2, 8) != first
    assert drawn(1, 7) != first


def test_generators_of_different_stages_and_model_calls_have_different_seeds() -> None:
    seeds = [jitter_generator(stage, call).initial_seed() for stage in range(1, 9) for call in range(400)]
    assert len(set(seeds)) == len(seeds)


def test_a_local_view_is_cropped_without_copying_and_its_prediction_is_added_in_place() -> None:
    x = torch.arange(40.0).view(1, 1, 5, 8)
    view = LocalView(1, 2, 3, 4)
    assert torch.equal(view.take(x), x[..., 1:4, 2:6])
    assert view.take(x).data_ptr() == x[..., 1:, 2:].data_ptr()
    out = torch.zeros_like(x)
    view.add_to(out, torch.ones(3, 4))
    view.add_to(out, torch.ones(3, 4))
    assert out.sum() == 24
    assert torch.equal(out[..., 1:4, 2:6], torch.full((1, 1, 3, 4), 2.0))


SIZES = st.tuples(st.integers(1, 60), st.integers(1, 60))
FACTORS = st.integers(1, 8)


@EXAMPLES
@given(size=SIZES, factor=FACTORS)
@example(size=(1, 1), factor=8)
@example(size=(33, 65), factor=2)
def test_dilated_views_contain_every_cell_once(size: Size, factor: int) -> None:
    x = torch.arange(1.0, 1 + math.prod(size)).view(1, 1, *size)
    count, back = torch.zeros_like(x), torch.zeros_like(x)
    views = dilated_views(size, factor)
    for view in views:
        taken = view.take(x)
        view.add_to(back, taken)
        view.add_to(count, torch.ones_like(taken))
    assert len(views) == factor**2
    assert torch.equal(count, torch.ones_like(x))
    assert torch.equal(back, x)


@EXAMPLES
@given(size=SIZES, factor=FACTORS)
@example(size=(33, 65), factor=2)
def test_a_dilated_view_contains_every_nth_cell_of_the_padded_latent(size: Size, factor: int) -> None:
    """The latent is padded with zeros at the top and left, so that its sides are multiples of the factor.

    A view contains every factor-th cell of the padded latent in both directions.
    """
    x = torch.arange(1.0, 1 + 2 * math.prod(size)).view(2, 1, *size)
    padded = F.pad(x, (-size[1] % factor, 0, -size[0] % factor, 0))
    phases = [(i, j) for i in range(factor) for j in range(factor)]
    for (i, j), view in zip(phases, dilated_views(size, factor)):
        taken = view.take(x)
        assert torch.equal(taken, padded[..., i::factor, j::factor])
        assert taken.shape[2:] == dilated_size(size, factor)


def test_the_plan_counts_the_cells_of_the_views() -> None:
    stage = StagePlan(1, 3.0, (97, 130), 3, (32, 48), (20, 31))
    local = views_of(stage.size, stage.window, stage.stride, 0)
    x = torch.zeros(1, 1, *stage.size)
    cells = [view.take(x).numel() for view in [*local, *dilated_views(stage.size, stage.factor)]]
    assert evaluations(stage) == len(cells)
    assert stage.cells_at(0.5) == sum(cells)
