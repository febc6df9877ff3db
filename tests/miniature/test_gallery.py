"""Tests which images of a run the page's gallery shows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from in_process import BASE, Webui, interrupt_at, sizes
from modules import shared
from PIL import Image, ImageChops

from lib_demofusion.host import stage_loop
from lib_demofusion.host.common import options
from lib_demofusion.host.integrations import refusals

ON = {"enabled": True, "preset": "Fast"}
UPLOAD = Image.radial_gradient("L").resize((BASE, BASE)).convert("RGB")


def test_the_base_image_follows_the_final_image(webui: Webui) -> None:
    """The base image equals the image that the webui makes without DemoFusion."""
    result = webui.job(ON, from_page=True)
    assert sizes(result) == [2 * BASE, BASE]
    assert "DemoFusion stage: base image" in result.infotexts[1]
    assert "DemoFusion stage:" not in result.infotexts[0]
    plain = webui.job().images[0]
    assert ImageChops.difference(result.images[1], plain).getbbox() is None


def test_the_base_images_of_a_batch_follow_all_final_images_and_have_their_own_infotexts(webui: Webui) -> None:
    result = webui.job(ON, from_page=True, batch_size=2, do_not_save_grid=True)
    assert sizes(result)[-4:] == [2 * BASE] * 2 + [BASE] * 2
    assert [f"Seed: {7 + i % 2}," in text for i, text in enumerate(result.infotexts[-4:])] == [True] * 4
    assert len(result.infotexts) == len(result.images)


def test_the_api_gets_only_the_requested_images(webui: Webui) -> None:
    assert sizes(webui.job(ON)) == [2 * BASE]


def test_a_setting_hides_the_base_image(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.opts, options.SHOW_BASE, False)
    assert sizes(webui.job(ON, from_page=True)) == [2 * BASE]


def test_the_base_image_is_not_shown_if_a_script_is_selected(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some scripts, such as Prompt matrix, depend on the number of images of a job."""
    real = refusals.of_job
    monkeypatch.setattr(refusals, "of_job", lambda p: replace(real(p), script="Prompt matrix"))
    assert sizes(webui.job(ON, from_page=True)) == [2 * BASE]


def test_the_base_image_is_not_shown_if_it_is_the_uploaded_image(webui: Webui) -> None:
    assert sizes(webui.job(ON, init_image=UPLOAD, from_page=True)) == [2 * BASE]
    first = {**ON, "img2img_first": True}
    assert sizes(webui.job(first, init_image=UPLOAD, from_page=True)) == [2 * BASE, BASE]


def test_the_field_return_stages_does_not_add_a_second_base_image(webui: Webui) -> None:
    """The label of this field is "Show every stage". If the field is on, the base image is shown once."""
    assert sizes(webui.job({**ON, "return_stages": True}, from_page=True)) == [2 * BASE, BASE]


def test_a_run_that_is_interrupted_in_the_first_stage_shows_the_base_image_once(
    webui: Webui, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at(monkeypatch, stage_loop, "run_stage")
    result = webui.job(ON, from_page=True)
    assert sizes(result) == [BASE]
    assert "DemoFusion stopped" in result.infotexts[0]
