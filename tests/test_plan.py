"""Tests the plan of the stages: sizes, views, cost, and the errors for settings that are not valid."""

from __future__ import annotations

import math
from itertools import pairwise

import hypothesis.strategies as st
import pytest
from fusing import evaluations
from hypothesis import assume, example, given, settings

from lib_demofusion.method.plan import Plan, make_plan
from lib_demofusion.method.views import LocalView, Size, dilated_size, jitter_range, view_starts
from lib_demofusion.settings.errors import SettingsError
from lib_demofusion.settings.fields import Settings, parse_stages
from lib_demofusion.settings.reading import parse_settings

EXAMPLES = settings(max_examples=300, deadline=None)
BASES = [(32, 32), (33, 33), (32, 48), (48, 32), (64, 64), (64, 96), (96, 64), (104, 152), (128, 128), (8, 100)]
SCALES = [1, 1.25, 1.5, 2, 2.5, 3, 3.75, 4, 5, 6, 7, 8]


def cost_of(plan: Plan) -> float:
    """Returns the cost of the base pass and all stages, in units of the base pass.

    Assumes that every stage makes as many model calls as the base pass, with both tiles and dilated views in each call.
    """
    return 1 + sum(stage.cells_at(0.5) for stage in plan.stages) / math.prod(plan.base)


def plan_of(base: Size, **values: object) -> Plan:
    return make_plan(parse_settings(values), base)


def sizes(plan: Plan) -> list[Size]:
    return [stage.size for stage in plan.stages]


def scales(plan: Plan) -> list[float]:
    return [stage.scale for stage in plan.stages]


def rounded(value: float) -> int:
    """Rounds to the nearest whole number. Rounds halves up."""
    return math.floor(value + 0.5)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("scale", SCALES)
def test_the_final_size_is_the_scaled_size_of_the_base(base: Size, scale: float) -> None:
    """The final size is rounded to the nearest cell. The base image is not cropped."""
    plan = plan_of(base, scale=scale)
    size = (rounded(base[0] * scale), rounded(base[1] * scale))
    assert plan.pixels == (8 * size[0], 8 * size[1])
    assert plan.crop == LocalView(0, 0, *base)
    assert sizes(plan)[-1:] == ([size] if size != base else [])


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (1.25, [1.25]),
        (1.5, [1.5]),
        (2, [2]),
        (2.25, [2.25]),
        (2.5, [2, 2.5]),
        (3, [2, 3]),
        (3.25, [2, 3.25]),
        (3.5, [2, 3, 3.5]),
        (4, [2, 3, 4]),
        (8, [2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_by_default_there_is_a_stage_at_each_whole_scale_and_at_the_final_scale(
    scale: float, expected: list[float]
) -> None:
    """A whole scale that is less than 0.5 below the final scale gets no stage."""
    plan = plan_of((64, 96), scale=scale)
    assert scales(plan) == expected
    assert sizes(plan) == [(rounded(64 * k), rounded(96 * k)) for k in expected]
    assert [stage.number for stage in plan.stages] == list(range(1, len(expected) + 1))


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("values", [{"scale": 1}, {"stages": "1"}, {"scale": 1, "tile_size": 16, "tile_stride": 4}])
def test_scale_one_needs_no_stage(base: Size, values: dict[str, object]) -> None:
    plan = plan_of(base, **values)
    assert plan == Plan(base, LocalView(0, 0, *base), (), plan.notes)
    assert plan.pixels == (8 * base[0], 8 * base[1])
    assert cost_of(plan) == 1


@pytest.mark.parametrize(
    ("scale", "doubling"), [(1.5, [1.5]), (2, [2]), (3, [2, 3]), (4, [2, 4]), (6, [2, 4, 6]), (8, [2, 4, 8])]
)
def test_the_words_doubling_and_fewest_choose_stages_for_a_scale(scale: float, doubling: list[float]) -> None:
    plan = plan_of((64, 96), scale=scale, stages="doubling")
    assert scales(plan) == doubling
    assert plan.notes == ()
    fewest = [math.sqrt(scale), scale] if scale > 4 else [scale]
    assert scales(plan_of((64, 96), scale=scale, stages="fewest")) == pytest.approx(fewest)
    assert scales(plan_of((64, 96), width=round(768 * scale), stages="doubling")) == doubling


@pytest.mark.parametrize(
    ("window", "overlap", "stride"),
    [((64, 96), 0.5, (32, 48)), ((15, 9), 0.5, (7, 4)), ((64, 64), 0.25, (48, 48)), ((10, 10), 0.3, (7, 7)),
     ((64, 96), 0, (64, 96)), ((8, 8), 0.9, (1, 1))],
)  # fmt: skip
def test_the_stride_follows_from_the_overlap_unless_a_stride_is_given(
    window: Size, overlap: float, stride: Size
) -> None:
    assert plan_of(window, scale=4, overlap=overlap).stages[0].stride == stride
    assert plan_of(window, scale=4, overlap=overlap, tile_stride=5).stages[0].stride == (5, 5)


def test_a_final_size_that_equals_the_base_image_needs_no_stage() -> None:
    assert plan_of((64, 96), width=768, height=512).stages == ()
    assert plan_of((64, 96), width=768).stages == ()
    assert plan_of((64, 96), height=512).stages == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,2,4", [2, 4]),
        ("2,4", [2, 4]),
        ("1, 2 ,4", [2, 4]),
        ("1;2;4", [2, 4]),
        ("1.5,3", [1.5, 3]),
        ("8", [8]),
        ("1", []),
        ("", []),
    ],
)
def test_a_leading_one_is_removed_from_a_list_of_stages(text: str, expected: list[float]) -> None:
    assert parse_stages(text) == expected


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("text", ["1,2,4", "1.5,2.5", "3", "1,1.5,2,8"])
def test_a_list_of_stages_determines_the_sizes(base: Size, text: str) -> None:
    plan = plan_of(base, stages=text)
    expected = parse_stages(text)
    assert sizes(plan) == [(rounded(base[0] * k), rounded(base[1] * k)) for k in expected]
    assert scales(plan)[:-1] == expected[:-1]
    assert plan.notes == () or "rounded" in plan.notes[0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"stages": "1.001,2"}, [2]),
        ({"stages": "2,2.001"}, [2]),
        ({"stages": "2,2.001,2.002,4"}, [2.002, 4]),
        ({"stages": "1.001"}, []),
        ({"stages": "1,2.957", "width": 760}, [2.96875]),
    ],
)
def test_scales_that_round_to_the_same_size_share_one_stage(values: dict[str, object], expected: list[float]) -> None:
    plan = plan_of((32, 32), **values)
    assert scales(plan) == expected
    assert len({(32, 32), *sizes(plan)}) == 1 + len(expected)


def test_a_note_says_that_a_list_of_stages_overrides_the_scale() -> None:
    assert plan_of((64, 64), stages="1,2,4", scale=3).notes == (
        "Upscale by (3) is not used, because the last number in Stages is 4",
    )
    assert plan_of((64, 64), stages="1,2,4", scale=4).notes == ()
    assert plan_of((64, 64), stages="1,2,4").notes == ()


@pytest.mark.parametrize(
    ("base", "values", "pixels"),
    [
        ((64, 64), {"width": 1024, "height": 1024}, (1024, 1024)),
        ((64, 64), {"width": 1024}, (1024, 1024)),
        ((64, 64), {"height": 1024}, (1024, 1024)),
        ((64, 96), {"width": 1536}, (1024, 1536)),
        ((64, 96), {"height": 1024}, (1024, 1536)),
        ((64, 96), {"height": 1024, "scale": 5}, (1024, 1536)),
        ((104, 152), {"width": 2000}, (1368, 2000)),
        ((33, 33), {"height": 2112}, (2112, 2112)),
    ],
)
def test_one_given_side_keeps_the_aspect_ratio_of_the_base(base: Size, values: dict[str, int], pixels: Size) -> None:
    plan = plan_of(base, **values)
    assert plan.pixels == pixels
    assert plan.crop == LocalView(0, 0, *base)


@pytest.mark.parametrize(
    ("base", "width", "height", "crop"),
    [
        ((64, 64), 2048, 1024, LocalView(16, 0, 32, 64)),
        ((64, 64), 1024, 2048, LocalView(0, 16, 64, 32)),
        ((64, 96), 1024, 1024, LocalView(0, 16, 64, 64)),
        ((64, 96), 1536, 512, LocalView(16, 0, 32, 96)),
        ((128, 128), 2048, 1536, LocalView(16, 0, 96, 128)),
        ((33, 33), 528, 264, LocalView(8, 0, 17, 33)),
    ],
)
def test_the_base_is_cropped_to_another_aspect_ratio(base: Size, width: int, height: int, crop: LocalView) -> None:
    plan = plan_of(base, width=width, height=height)
    assert plan.pixels == (height, width)
    assert plan.crop == crop
    assert f"the base image is cropped to {8 * crop.width}x{8 * crop.height} to match the final shape" in plan.notes
    assert plan.stages[-1].scale == max(height / 8 / crop.height, width / 8 / crop.width)


@pytest.mark.parametrize(
    ("values", "pixels", "note"),
    [
        ({"scale": 1.7}, (872, 872), "870x870 is rounded to 872x872, multiples of 8 pixels"),
        ({"width": 1001, "height": 1003}, (1000, 1000), "1001x1003 is rounded to 1000x1000, multiples of 8 pixels"),
        ({"width": 1004}, (1008, 1008), "1004x1008 is rounded to 1008x1008, multiples of 8 pixels"),
        ({"height": 515}, (512, 512), "512x515 is rounded to 512x512, multiples of 8 pixels"),
    ],
)
def test_rounding_is_noted(values: dict[str, float], pixels: Size, note: str) -> None:
    plan = plan_of((64, 64), **values)
    assert plan.pixels == pixels
    assert note in plan.notes


def test_sizes_of_whole_cells_get_no_note() -> None:
    assert plan_of((64, 96), scale=2.5).notes == ()
    assert plan_of((64, 96), width=1536, height=1024).notes == ()


def test_a_list_of_stages_can_be_combined_with_a_final_size() -> None:
    """The list contains the scales of the stages before the final size. The list may also contain the final scale."""
    assert scales(plan_of((64, 64), stages="1,2,4", width=2048)) == [2, 4]
    assert scales(plan_of((64, 64), stages="1,2", width=2048)) == [2, 4]
    assert scales(plan_of((64, 64), stages="2,3", width=2048, height=1024)) == [2, 3, 4]
    assert scales(plan_of((128, 128), stages="1.5,1.995", width=2048)) == [1.5, 2]


@pytest.mark.parametrize(
    ("scale", "views", "cost"),
    [(2, [13], 14), (3, [13, 34], 48), (4, [13, 34, 65], 113), (5, [13, 34, 65, 106], 219)],
)
def test_the_cost_equals_the_cost_of_the_paper(scale: int, views: list[int], cost: float) -> None:
    """In the paper, the base image of SDXL has 128 x 128 cells, and the stride of the tiles is 64 cells."""
    plan = plan_of((128, 128), scale=scale)
    assert [evaluations(stage) for stage in plan.stages] == views
    assert cost_of(plan) == cost


def test_the_views_and_the_cost_of_a_stage_at_a_scale_of_two() -> None:
    (stage,) = plan_of((64, 96), scale=2).stages
    assert (stage.window, stage.stride, stage.factor) == ((64, 96), (32, 48), 2)
    assert (stage.local_count, stage.dilated_count) == (9, 4)
    assert stage.pixels == (1024, 1536)
    assert stage.cells_at(0.5) == 13 * 64 * 96
    assert jitter_range(stage.window[0], stage.stride[0]) > 0


def test_tiles_without_overlap_have_no_jitter() -> None:
    (stage,) = plan_of((64, 64), scale=2, tile_size=32, tile_stride=32).stages
    assert jitter_range(stage.window[0], stage.stride[0]) == 0
    assert stage.local_count == 16


def test_the_cost_depends_on_the_tile_size() -> None:
    (stage,) = plan_of((64, 64), scale=2, tile_size=32, tile_stride=16).stages
    assert stage.local_count == 49
    assert stage.cells_at(0.5) == 49 * 32 * 32 + 4 * 64 * 64


@pytest.mark.parametrize(
    ("scale", "factors"),
    [(1.2, [2]), (2, [2]), (2.4, [3]), (2.5, [2, 3]), (4, [2, 3, 4]), (4.49, [2, 3, 5]), (4.5, [2, 3, 4, 5])],
)
def test_the_dilation_factor_is_the_scale_rounded_up_and_at_least_two(scale: float, factors: list[int]) -> None:
    assert [stage.factor for stage in plan_of((100, 100), scale=scale).stages] == factors


def test_tile_and_stride_are_not_larger_than_the_stage() -> None:
    plan = plan_of((64, 64), width=4096, height=512, tile_size=256, tile_stride=200)
    assert plan.crop == LocalView(28, 0, 8, 64)
    for stage in plan.stages:
        assert stage.window == (min(256, stage.size[0]), min(256, stage.size[1]))
        assert stage.stride == (min(200, stage.size[0]), min(200, stage.size[1]))


SIDES = st.integers(8, 160)


@EXAMPLES
@given(base=st.tuples(SIDES, SIDES), scale=st.floats(1, 8))
@example(base=(64, 96), scale=1.9)
@example(base=(10, 100), scale=1.05)
def test_a_scale_never_crops_the_base(base: Size, scale: float) -> None:
    plan = plan_of(base, scale=scale)
    assert plan.crop == LocalView(0, 0, *base)
    for axis in (0, 1):
        assert abs(plan.pixels[axis] / 8 - base[axis] * scale) <= 0.5 + 1e-9
    assert_sane(plan)


@EXAMPLES
@given(base=st.tuples(SIDES, SIDES), pixels=st.integers(64, 64 * 160), axis=st.sampled_from(["width", "height"]))
@example(base=(64, 32), pixels=252, axis="width")
@example(base=(96, 8), pixels=515, axis="width")
def test_a_given_side_is_used_or_reported(base: Size, pixels: int, axis: str) -> None:
    """The other side is computed from the given side. An error must name the given side, never the computed side."""
    native = base[1] if axis == "width" else base[0]
    if native <= rounded(pixels / 8) <= 8 * native:
        plan = plan_of(base, **{axis: pixels})
        assert abs(plan.pixels[axis == "width"] - pixels) <= 4
        assert plan.crop == LocalView(0, 0, *base)
        assert_sane(plan)
        return
    message = rf"^{axis}: {pixels} is not valid. Use 0, or {8 * native} to {64 * native} for this base image$"
    with pytest.raises(SettingsError, match=message):
        plan_of(base, **{axis: pixels})


@EXAMPLES
@given(
    base=st.tuples(SIDES, SIDES),
    grown=st.tuples(st.floats(1, 8), st.floats(1, 8)),
    window=st.sampled_from([0, 8, 16]),
    stages=st.sampled_from(["", "1,1.5", "1"]),
)
def test_any_aspect_ratio_is_possible(base: Size, grown: tuple[float, float], window: int, stages: str) -> None:
    """The crop of the base image is centered, and has the aspect ratio of the final image to the nearest cell."""
    target = rounded(base[0] * grown[0]), rounded(base[1] * grown[1])
    assume(not stages or max(grown) > 1.6)
    assume(window <= max(target))
    plan = plan_of(base, height=8 * target[0], width=8 * target[1], tile_size=window, stages=stages)
    assert plan.pixels == (8 * target[0], 8 * target[1])
    scale = max(target[0] / base[0], target[1] / base[1])
    kept = (plan.crop.height, plan.crop.width)
    assert any(side == whole for side, whole in zip(kept, base))
    for axis in (0, 1):
        assert abs(kept[axis] - target[axis] / scale) <= 0.5 + 1e-9 or kept[axis] == 1
        before = (plan.crop.top, plan.crop.left)[axis]
        assert before == (base[axis] - kept[axis]) // 2
    assert_sane(plan)


@EXAMPLES
@given(base=st.tuples(SIDES, SIDES), scale=st.floats(1, 8), stages=st.sampled_from(["", "fewest", "doubling"]))
@example(base=(64, 64), scale=2.4, stages="fewest")
@example(base=(96, 64), scale=1.1, stages="fewest")
@example(base=(128, 128), scale=6.0, stages="fewest")
@example(base=(152, 104), scale=2.49, stages="")
@example(base=(9, 31), scale=3.0, stages="")
def test_no_view_is_larger_than_the_base(base: Size, scale: float, stages: str) -> None:
    """Dilated views also have a minimum size: half of the base image per side, except for rounding."""
    for stage in plan_of(base, scale=scale, stages=stages).stages:
        seen = dilated_size(stage.size, stage.factor)
        for length, shown, whole in zip(stage.window, seen, base):
            assert length <= whole
            assert (whole - 1) / 2 <= shown <= whole


def assert_sane(plan: Plan) -> None:
    """Checks the properties of a plan that the rest of the program relies on."""
    assert scales(plan) == sorted(set(scales(plan)))
    for stage in plan.stages:
        assert stage.factor >= 2
        assert all(1 <= s <= w <= n for s, w, n in zip(stage.stride, stage.window, stage.size))
        assert all(1 <= side <= whole for side, whole in zip(dilated_size(stage.size, stage.factor), plan.base))
    for before, after in pairwise([(plan.crop.height, plan.crop.width), *sizes(plan)]):
        assert before != after
    assert cost_of(plan) >= 1


def test_assert_sane_detects_stages_in_the_wrong_order() -> None:
    reversed_plan = Plan((64, 64), LocalView(0, 0, 64, 64), plan_of((64, 64), scale=3).stages[::-1])
    with pytest.raises(AssertionError):
        assert_sane(reversed_plan)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 504}, "width: 504 is not valid. Use 0, or 512 to 4096 for this base image"),
        ({"height": 504}, "height: 504 is not valid. Use 0, or 512 to 4096 for this base image"),
        ({"width": 4104}, "width: 4104 is not valid. Use 0, or 512 to 4096 for this base image"),
        (
            {"width": 1024, "height": 256},
            "height: 256 is not valid. Use 0, or 512 to 4096 for this base image",
        ),
        (
            {"width": 256, "height": 1024},
            "width: 256 is not valid. Use 0, or 512 to 4096 for this base image",
        ),
        ({"width": 1}, "width: 1 is not valid. Use 0, or 512 to 4096 for this base image"),
        (
            {"tile_size": 129},
            "tile_size: 129 is not valid. Use 0, 0.5 to 2 times the base image, or 8 to 128 cells",
        ),
        (
            {"tile_size": 7},
            "tile_size: 7 is not valid. Use 0, 0.5 to 2 times the base image, or 8 to 128 cells",
        ),
        ({"tile_size": 2.5}, "tile_size: 2.5 is not valid. Use 0, 0.5 to 2 times the base image, or 8 to 128"),
        (
            {"tile_size": 16.5},
            "tile_size: 16.5 is not valid. Use 0, 0.5 to 2 times the base image, or 8 to 128",
        ),
        ({"tile_stride": 65}, "tile_stride: 65 is not valid. Use 0, or 1 to 64, the shorter side of a tile"),
        (
            {"tile_size": 16, "tile_stride": 17},
            "tile_stride: 17 is not valid. Use 0, or 1 to 16, the shorter side of a tile",
        ),
        (
            {"stages": "1,2,4", "width": 1024},
            "stages: '1,2,4' is not valid. Use scales up to 2, the scale of the final size",
        ),
        ({"stages": "4,2"}, "stages: '4,2' is not valid. Use increasing scales from 1 to 8, such as 1,2,4"),
        ({"stages": "2,2"}, "stages: '2,2' is not valid. Use increasing scales from 1 to 8, such as 1,2,4"),
        ({"stages": "1,,2"}, "stages: '1,,2' is not valid. Use increasing scales from 1 to 8, such as 1,2,4"),
        ({"stages": "0,2"}, "stages: '0,2' is not valid. Use increasing scales from 1 to 8, such as 1,2,4"),
        ({"stages": "nan"}, "stages: 'nan' is not valid. Use increasing scales from 1 to 8, such as 1,2,4"),
        ({"stages": "2,9"}, "stages: '2,9' is not valid. Use increasing scales from 1 to 8, such as 1,2,4"),
        ({"scale": 0}, "scale: 0 is not valid. Use a number from 1 to 8"),
        ({"scale": "big"}, "scale: 'big' is not valid. Use a number from 1 to 8"),
    ],
)
def test_values_that_are_not_valid_for_the_base_image_are_reported(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        plan_of((64, 64), **values)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "values", [{"tile_size": 128}, {"tile_size": 8}, {"tile_stride": 64}, {"tile_size": 16, "tile_stride": 16}]
)
def test_the_limits_of_tile_size_and_tile_stride_are_accepted(values: dict[str, int]) -> None:
    (stage,) = plan_of((64, 64), **values).stages
    assert stage.window == (values.get("tile_size", 64),) * 2
    assert stage.stride == (values.get("tile_stride", max(1, stage.window[0] // 2)),) * 2


def test_a_tile_size_of_up_to_two_is_a_multiple_of_the_base_image() -> None:
    (stage,) = plan_of((64, 96), tile_size=1.0625, overlap=0).stages
    assert stage.window == stage.stride == (68, 104)
    assert stage.local_count == 4
    assert view_starts(stage.size[0], stage.window[0], stage.stride[0]) == [0, 60]


@pytest.mark.parametrize(
    ("base", "factor", "window"),
    [
        ((64, 64), 0.875, (56, 56)),
        ((128, 128), 0.875, (112, 112)),
        ((104, 152), 0.875, (92, 132)),
        ((128, 128), 1.07, (136, 136)),
        ((16, 16), 0.875, (14, 14)),
        ((16, 16), 1.07, (17, 17)),
        ((12, 64), 0.5, (8, 32)),
        ((45, 66), 1.0, (45, 66)),
    ],
)
def test_rounding_of_a_tile_size_that_is_a_multiple_of_the_base_image(
    base: tuple[int, int], factor: float, window: tuple[int, int]
) -> None:
    """A side is rounded to a multiple of 4 cells, or to whole cells if this side of the base image is below 32 cells.

    The result has at least 8 cells. A tile size of 1 is the exact size of the base image.
    """
    assert plan_of(base, tile_size=factor).stages[0].window == window


def test_default_settings_double_the_base() -> None:
    plan = make_plan(Settings(), (64, 64))
    assert sizes(plan) == [(128, 128)]
