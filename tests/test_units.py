"""Tests plans and views for transformers, which join 2 x 2 cells of the latent into one token.

If a side of a crop is odd, such a model pads the crop with cells from its opposite border. The sides of the latent and
of all views must therefore be multiples of two cells. The code calls this number of cells `unit`.
"""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from torch import Tensor

from lib_demofusion.method.batching import ViewBatches
from lib_demofusion.method.plan import CELL, make_plan
from lib_demofusion.method.residual import Flow
from lib_demofusion.method.sampler_steps import StepDetector
from lib_demofusion.method.stage import SamplerTraits, StageRun
from lib_demofusion.method.views import Size, dilated_size, dilated_views, jitter_generator, local_views
from lib_demofusion.settings.fields import Settings
from lib_demofusion.settings.presets import PRESETS
from lib_demofusion.settings.reading import parse_settings

EXAMPLES = settings(max_examples=200, deadline=None)
UNIT = 2
"""All sides must be multiples of this number of cells."""
SIDES = st.integers(16, 100)
SMALL_SIDES = st.integers(8, 60)


@EXAMPLES
@given(size=st.tuples(SMALL_SIDES, SMALL_SIDES), factor=st.integers(1, 8), unit=st.integers(1, 4))
@example(size=(9, 33), factor=3, unit=2)
def test_dilated_views_contain_every_cell_once_and_their_sides_are_multiples_of_the_unit(
    size: Size, factor: int, unit: int
) -> None:
    """The latent is padded with zeros at the top and left, so that its sides are multiples of factor * unit.

    A view contains every factor-th cell of the padded latent in both directions.
    """
    x = torch.arange(1.0, 1 + math.prod(size)).view(1, 1, *size)
    whole = factor * unit
    padded = F.pad(x, (-size[1] % whole, 0, -size[0] % whole, 0))
    count, back = torch.zeros_like(x), torch.zeros_like(x)
    for view in dilated_views(size, factor, unit):
        taken = view.take(x)
        assert torch.equal(taken, padded[..., view.row :: factor, view.column :: factor])
        assert taken.shape[2:] == view.crop_size == dilated_size(size, factor, unit)
        assert all(side % unit == 0 for side in view.crop_size)
        view.add_to(back, taken)
        view.add_to(count, torch.ones_like(taken))
    assert torch.equal(back, x)
    assert torch.equal(count, torch.ones_like(x))


@EXAMPLES
@given(
    base=st.tuples(SIDES, SIDES),
    scale=st.floats(1, 8),
    preset=st.sampled_from(sorted(PRESETS)),
    tile=st.sampled_from([None, 0.5, 1.07, 9.0, 13.0]),
)
@example(base=(33, 65), scale=3.0, preset="Paper", tile=None)
@example(base=(64, 64), scale=1.55, preset="Fast", tile=13.0)
def test_every_side_in_a_plan_is_a_multiple_of_the_unit(
    base: Size, scale: float, preset: str, tile: float | None
) -> None:
    values = {**PRESETS[preset], "scale": scale, **({} if tile is None else {"tile_size": tile})}
    plan = make_plan(parse_settings(values), base, UNIT)
    for stage in plan.stages:
        assert stage.unit == UNIT
        shown = dilated_size(stage.size, stage.factor, UNIT)
        for side in (*stage.size, *stage.window, *stage.stride, *shown):
            assert side % UNIT == 0
            assert side > 0
        # rounding can make a side of a dilated view longer than that side of the base image, by UNIT cells at most
        assert all(a <= whole + UNIT for a, whole in zip(shown, base))
        assert all(step <= window <= size for step, window, size in zip(stage.stride, stage.window, stage.size))
        if math.prod(stage.size) < 40000:
            assert_covered(
                stage.size, local_views(stage.size, stage.window, stage.stride, jitter_generator(1, 1), UNIT)
            )


def assert_covered(size: Size, views) -> None:
    count = torch.zeros(size)
    for view in views:
        assert view.height % UNIT == view.width % UNIT == 0
        view.take(count).add_(1)
    assert (count > 0).all()


@pytest.mark.parametrize(
    ("base", "values", "pixels", "note"),
    [
        ((64, 64), {"scale": 1.55}, (800, 800), "794x794 is rounded to 800x800, multiples of 16 pixels"),
        ((65, 64), {"scale": 1.5}, (784, 768), "768x780 is rounded to 768x784, multiples of 16 pixels"),
        ((64, 64), {"width": 1000}, (1008, 1008), "1000x1000 is rounded to 1008x1008, multiples of 16 pixels"),
        ((64, 64), {"scale": 2, "tile_size": 13}, (1024, 1024), "tile size 13 is rounded to 12 cells"),
        ((64, 64), {"scale": 2, "tile_stride": 13}, (1024, 1024), "tile stride 13 is rounded to 12 cells"),
    ],
)
def test_every_rounding_is_noted(base: Size, values: dict, pixels: Size, note: str) -> None:
    plan = make_plan(parse_settings(values), base, UNIT)
    assert plan.pixels == pixels
    assert note in plan.notes


def test_sizes_that_are_not_rounded_get_no_note() -> None:
    assert make_plan(parse_settings({"scale": 2}), (65, 64), UNIT).notes == ()


def test_a_base_image_with_an_odd_side_needs_no_stage_at_scale_1() -> None:
    plan = make_plan(parse_settings({"scale": 1}), (65, 64), UNIT)
    assert (plan.stages, plan.pixels, plan.notes) == ((), (65 * CELL, 64 * CELL), ())


def test_rounding_the_size_up_does_not_increase_the_dilation_factor() -> None:
    """At 3x, 65 cells become 195 cells, which are rounded up to 196. The factor must still be 3.

    The quotient 196 / 65 is more than 3. If it were rounded up to a factor of 4, dilated views would only be 50 cells
    wide.
    """
    (stage,) = make_plan(parse_settings({"scale": 3, "stages": "fewest"}), (65, 65), UNIT).stages
    assert (stage.size, stage.factor) == ((196, 196), 3)


def test_the_model_gets_only_crops_whose_sides_are_multiples_of_the_unit() -> None:
    """Checks local and dilated views with and without jitter.

    Without jitter, the positions of local views are multiples of the unit too.
    """
    plan = make_plan(parse_settings({"scale": 2.2, "tile_size": 13}), (33, 32), UNIT)
    stage = plan.stages[-1]
    seen: set[Size] = set()

    def evaluate(crops: Tensor, views, rows) -> Tensor:
        seen.add((crops.shape[-2], crops.shape[-1]))
        return crops

    anchor = torch.randn(1, 4, *stage.size, generator=torch.Generator().manual_seed(1))
    for jitter in (True, False):
        run = StageRun(stage, Settings(jitter=jitter), anchor, anchor, SamplerTraits(Flow(), StepDetector()))
        x = anchor.clone()
        run.before_call(x, torch.tensor(0.7))
        assert run.denoise(evaluate, x, 1.0, ViewBatches(3)).shape == x.shape
        assert len(run.local) == stage.local_count
    small = dilated_size(stage.size, stage.factor, UNIT)
    assert seen == {stage.window, small}
    assert all(view.top % UNIT == view.left % UNIT == 0 for view in run.local)
    assert stage.cells_at(0.0) == stage.local_count * math.prod(stage.window)
    assert stage.cells_at(1.0) == stage.dilated_count * math.prod(small)
