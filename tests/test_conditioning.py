"""Tests the conditions that the views of a model call and the stages of a job receive.

For views, image conditions are cropped or resized, and all other conditions are repeated. For stages, the image
conditioning is resized, and the steps at which prompts change are shifted. The host's own objects are not modified.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lib_demofusion.method.conditioning import cond_for_views, conds_of_stage, image_conditioning_for
from lib_demofusion.method.views import LocalView, Size, View, dilated_views

SIZE = (32, 24)
LOCAL: list[View] = [LocalView(0, 0, 16, 12), LocalView(9, 5, 16, 12), LocalView(16, 12, 16, 12)]
DILATED: list[View] = list(dilated_views(SIZE, 2))
ALL = slice(0, None)
CROP = (16, 12)
"""The size of all views in LOCAL and DILATED. SIZE is the size of the latent."""


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("views", [LOCAL, DILATED])
def test_image_conditions_are_cropped_like_the_latent(views: list[View]) -> None:
    shown = randn(2, 5, *SIZE)
    made = cond_for_views({"c_concat": [shown]}, views, ALL, SIZE, CROP)
    same(made["c_concat"][0], torch.cat([view.take(shown) for view in views]))


@pytest.mark.parametrize("views", [LOCAL, DILATED])
@pytest.mark.parametrize(
    "value",
    [randn(2, 77, 8), randn(2, 10), randn(2, 5, 1, 1), randn(2, 5, *CROP)],
    ids=["text", "vector", "no image", "image of a view's size"],
)
def test_conditions_that_do_not_have_the_size_of_the_latent_are_repeated_for_each_view(
    views: list[View], value: Tensor
) -> None:
    made = cond_for_views({"key": value, "list": [value], "c_concat": [value]}, views, ALL, SIZE, CROP)
    same(made["key"], torch.cat([value] * len(views)))
    same(made["list"][0], made["key"])
    same(made["c_concat"][0], made["key"])


def test_an_image_condition_of_another_size_is_resized_to_the_views() -> None:
    """In txt2img with an inpainting model, the webui's image condition has the size of the base image."""
    value = randn(2, 5, 8, 6)
    made = cond_for_views({"c_concat": [value]}, LOCAL, ALL, SIZE, CROP)
    same(made["c_concat"][0], torch.cat([F.interpolate(value, CROP, mode="nearest")] * len(LOCAL)))


@pytest.mark.parametrize("views", [LOCAL, DILATED])
@pytest.mark.parametrize("shape", [(2, 1, 7, 30), (2, 5, *SIZE), (2, 5, *CROP), (2,)])
@pytest.mark.parametrize("key", ["c_crossattn", "y", "guidance"])
def test_conditions_other_than_c_concat_are_never_resized(key: str, shape: tuple[int, ...], views: list[View]) -> None:
    """Some of these conditions also have four dimensions, such as the text embedding of Krea 2 in Forge Neo."""
    value = randn(*shape)
    made = cond_for_views({key: value}, views, ALL, SIZE, CROP)
    same(made[key], torch.cat([value] * len(views)))


def test_a_condition_that_is_a_single_number_is_passed_on_unchanged() -> None:
    value = torch.tensor(3.0)
    assert cond_for_views({"strength": value}, LOCAL, ALL, SIZE, CROP)["strength"] is value


def test_only_the_selected_rows_of_each_condition_are_used() -> None:
    cond = {"c_crossattn": [randn(4, 7, 8)], "c_concat": [randn(4, 5, *SIZE)], "c_adm": randn(4, 9), "other": "kept"}
    made = cond_for_views(cond, LOCAL, slice(1, 3), SIZE, CROP)
    halves = {"c_crossattn": [cond["c_crossattn"][0][1:3]], "c_concat": [cond["c_concat"][0][1:3]]}
    expected = cond_for_views({**halves, "c_adm": cond["c_adm"][1:3]}, LOCAL, ALL, SIZE, CROP)
    same(made["c_crossattn"][0], expected["c_crossattn"][0])
    same(made["c_concat"][0], expected["c_concat"][0])
    same(made["c_adm"], expected["c_adm"])
    assert made["other"] == "kept"


@pytest.mark.parametrize("views", [LOCAL[:1], LOCAL])
def test_the_hosts_dict_and_lists_are_not_modified(views: list[View]) -> None:
    """The dict and the lists for the views must be new, because the host's apply_model replaces their entries."""
    cond: dict[str, Any] = {"c_crossattn": [randn(2, 7, 8)], "c_adm": randn(2, 9)}
    before = cond["c_crossattn"][0]
    made = cond_for_views(cond, views, ALL, SIZE, CROP)
    made["c_crossattn"][0] = made["c_adm"] = None
    assert cond["c_crossattn"][0] is before
    assert cond["c_adm"] is not None


@pytest.mark.parametrize("size", [(32, 24), (24, 18), (35, 31)])
def test_the_mask_of_an_inpainting_model_stays_sharp_and_its_image_is_enlarged_like_the_anchor(size: Size) -> None:
    shown = torch.cat([(randn(2, 1, 16, 12) > 0).float(), randn(2, 4, 16, 12)], dim=1)
    made = image_conditioning_for(shown, torch.zeros(2, 4, *size), None)
    assert made.shape == (2, 5, *size)
    assert set(made[:, 0].unique().tolist()) <= {0.0, 1.0}
    same(made[:, :1], F.interpolate(shown[:, :1], size, mode="nearest"))
    # make_anchor in lib_demofusion.method.stage enlarges the anchor in the same way
    torch.testing.assert_close(made[:, 1:], F.interpolate(shown[:, 1:], size, mode="bicubic", align_corners=False))


@pytest.mark.parametrize("channels", [1, 4], ids=["depth", "instruct-pix2pix"])
def test_other_image_conditionings_are_enlarged_like_the_anchor(channels: int) -> None:
    shown = randn(1, channels, 16, 12)
    made = image_conditioning_for(shown, torch.zeros(1, 4, *SIZE), None)
    torch.testing.assert_close(made, F.interpolate(shown, SIZE, mode="bicubic", align_corners=False))


def test_image_conditioning_is_cropped_to_the_part_of_the_base_image_that_the_stages_show() -> None:
    shown = randn(1, 5, 16, 16)
    crop = LocalView(4, 0, 8, 16)
    anchor = torch.zeros(1, 4, 20, 40)
    same(image_conditioning_for(shown, anchor, crop), image_conditioning_for(crop.take(shown), anchor, None))


@pytest.mark.parametrize("value", [randn(2, 5, 1, 1), randn(2, 128)], ids=["single cell", "unCLIP"])
def test_conditioning_that_is_not_an_image_is_passed_on_unchanged(value: Tensor) -> None:
    assert image_conditioning_for(value, torch.zeros(2, 4, *SIZE), LocalView(0, 0, 4, 4)) is value


def test_the_image_conditioning_of_the_base_image_is_not_modified() -> None:
    shown = randn(1, 5, 16, 12)
    before = shown.clone()
    image_conditioning_for(shown, torch.zeros(1, 4, 16, 12), None)
    same(shown, before)


Scheduled = namedtuple("Scheduled", ["end_at_step", "cond"])


class Part:
    """Imitates the webui's ComposableScheduledPromptConditioning."""

    def __init__(self, schedules, weight=1.0):
        self.schedules, self.weight = schedules, weight


class Multicond:
    """Imitates the webui's MulticondLearnedConditioning."""

    def __init__(self, shape, batch):
        self.shape, self.batch = shape, batch


def shown(schedules, call: int):
    """Returns the cond that the webui's prompt_parser uses at model call number `call`.

    The parser uses the first cond whose end is not before the call. If all conds have ended, it uses the first cond.
    """
    return next((s.cond for s in schedules if call <= s.end_at_step), schedules[0].cond)


@pytest.mark.parametrize(("whole", "run"), [(20, 20), (20, 14), (20, 8), (20, 1), (10, 6), (40, 28), (7, 3)])
@pytest.mark.parametrize("ends", [(20,), (10, 20), (5, 12, 20), (19, 20)])
def test_a_prompt_changes_at_the_same_noise_level_as_in_the_base_pass(
    whole: int, run: int, ends: tuple[int, ...]
) -> None:
    of_base = [Scheduled(end, name) for end, name in zip(ends, "abc")]
    of_stage = conds_of_stage([of_base], whole, run)[0]
    for call in range(run):
        share = (whole - run + call) / whole
        # calls next to a change are not compared, because rounding can move the change by one call
        if all(abs(share * 20 - end) > 1 for end in ends):
            assert shown(of_stage, call) == shown(of_base, round(share * 20))


def test_a_stage_that_runs_the_whole_schedule_has_the_same_conds_as_the_base_pass() -> None:
    of_base = [Scheduled(9, "a"), Scheduled(20, "b")]
    assert conds_of_stage([of_base], 20, 20) == [of_base]


def test_an_uncond_of_none_stays_none() -> None:
    """In Forge and Forge Neo, the uncond is None at a CFG scale of 1."""
    assert conds_of_stage(None, 20, 14) is None


def test_the_parts_of_a_composed_prompt_keep_their_weights_and_are_shifted() -> None:
    """In the webui, the parts of a composed prompt are joined by AND."""
    made = conds_of_stage(Multicond((1,), [[Part([Scheduled(10, "a"), Scheduled(20, "b")], 0.7)]]), 20, 5)
    assert (made.shape, made.batch[0][0].weight) == ((1,), 0.7)
    assert [shown(made.batch[0][0].schedules, call) for call in range(5)] == ["b"] * 5
