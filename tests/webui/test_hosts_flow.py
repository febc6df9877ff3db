"""Tests flow models with random weights in webuis of Forge's family: `--webui DIR --checkpoints FOLDER`.

If FOLDER is empty, the first run fills it with a checkpoint of every family, see `flow_checkpoints.py`. `-k zimage`
runs the tests of one family.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from PIL import Image
from webui.conftest import Result, Webui, facts_or_skip, interrupted, png
from webui.flow_families import FAMILIES, NO_REFERENCE, ON, TWICE, family, linked, small, webui
from webui.test_api_and_scripts import options
from webui.test_generate import assert_good

__all__ = ["family", "webui"]

pytestmark = [pytest.mark.webui, pytest.mark.slow]

TOLERANCE = 2e-5
"""The largest allowed difference between the latents of a stage and of img2img.

It is relative to the largest absolute value in the latent of img2img. It allows for rounding errors. On a CPU, the
latents of Qwen-Image and Krea 2 are equal.
"""


@pytest.fixture(scope="module")
def upload() -> Image.Image:
    squares = np.random.default_rng(1).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(squares.repeat(8, axis=0).repeat(8, axis=1))


@pytest.mark.parametrize("sampler", ["Euler", "Euler a", "DPM++ 2M"])
@pytest.mark.parametrize("cfg_scale", [1, 4])
def test_a_stage_of_one_view_equals_the_webuis_img2img(webui: Webui, family: Any, sampler: str, cfg_scale: int) -> None:
    """A test extension compares the latents, and writes the result to the infotext. See demofusion_test_one_view.py."""
    result = small(webui, None, prompt="a circle ONEVIEW", sampler_name=sampler, cfg_scale=cfg_scale)
    differs, reaches = (
        float(re.findall(f"One view {word}: ([-+.e0-9]+)", result.infotexts[0])[0])
        for word in ("differs by", "reaches")
    )
    assert differs <= TOLERANCE * reaches


@pytest.mark.parametrize("cfg_scale", [1, 4])
def test_images_are_reproducible_and_plain_images_are_unchanged(webui: Webui, family: Any, cfg_scale: int) -> None:
    before = small(webui, None, cfg_scale=cfg_scale)
    first, second = (small(webui, cfg_scale=cfg_scale) for _ in range(2))
    assert_good(first, TWICE)
    assert first.digests == second.digests
    assert small(webui, None, cfg_scale=cfg_scale).digests == before.digests


def test_a_batch_of_views_gives_the_same_image_as_single_views(webui: Webui, family: Any) -> None:
    at_once, alone = (np.asarray(small(webui, {**ON, "view_batch": n}).images[0], int) for n in (16, 1))
    assert np.abs(at_once - alone).max() <= 2


def test_sizes_are_rounded_to_multiples_of_8_or_16_pixels(webui: Webui, family: Any) -> None:
    """At a scale of 1.625, a side has 104 pixels. This is a multiple of 8, and some models need multiples of 16.

    `family["unit"]` is the number of which the model needs multiples.
    """
    result = small(webui, {**ON, "scale": 1.625})
    assert_good(result, (104, 104) if family["unit"] == 8 else (112, 112))
    assert ("DemoFusion note" in result.infotexts[0]) == (family["unit"] == 16)


def test_images_of_a_batch_equal_single_images(webui: Webui, family: Any) -> None:
    both = small(webui, batch_size=2)
    assert_good(both, TWICE, TWICE)
    alone = small(webui, seed=2)
    assert np.abs(np.asarray(both.images[1], int) - np.asarray(alone.images[0], int)).max() <= 2


def test_an_interrupt_returns_the_base_image(webui: Webui, family: Any) -> None:
    plain = small(webui, None)
    # one stage: after the first of several stages, the extension returns the image of that stage
    slow = {**ON, "scale": 4, "stages": "fewest", "view_batch": 1}
    stopped = interrupted(webui, lambda: small(webui, slow))
    assert "DemoFusion stopped" in stopped.infotexts[0]
    assert stopped.digests[0] == plain.digests[0]


def test_the_infotext_reproduces_the_image(webui: Webui, family: Any) -> None:
    # the infotext does not set the number of views per batch, because that number depends on the machine
    result = small(webui, {**ON, "cosine_scale_1": 2.5, "view_batch": 0})
    # without `styles`, Forge Neo's API fails with or without DemoFusion
    again = webui.call("txt2img", {"infotext": result.infotexts[0], "styles": []})
    assert Result.of(again).digests == result.digests


SAMPLERS = ("DDIM", "PLMS", "Restart", "Kohaku LoNyu Yog", "UniPC")


def test_samplers_that_are_wrong_on_flow_models_are_refused(webui: Webui, family: Any) -> None:
    known = [entry["name"] for entry in webui.call("samplers")]
    for sampler in (name for name in SAMPLERS if name in known):
        result = small(webui, sampler_name=sampler)
        assert f"does not work with the sampler {sampler}" in result.infotexts[0]
        assert result.sizes == [(64, 64)]


def test_inpainting_works_or_is_refused(webui: Webui, family: Any, upload: Image.Image) -> None:
    """Inpainting is refused for families whose latents do not have the same shape as the webui's masks."""
    mask = Image.new("L", upload.size, 0)
    mask.paste(255, (24, 24, 56, 56))
    request = {"path": "img2img", "init_images": [png(upload)], "mask": png(mask), "denoising_strength": 0.7}
    result = small(webui, **request)
    if family["other_axes"]:
        assert f"does not work with inpainting with {family['name']}" in result.infotexts[0]
        assert result.sizes == [(64, 64)]
    else:
        assert_good(result, TWICE)


@pytest.mark.parametrize("redraw", [False, True])
def test_img2img_enlarges_the_upload_or_the_redrawn_image(
    webui: Webui, family: Any, upload: Image.Image, redraw: bool
) -> None:
    request = {"path": "img2img", "init_images": [png(upload)], "denoising_strength": 0.6}
    # in Forge Neo, the first image after a job with a mask differs from all later ones, with or without DemoFusion
    small(webui, None, **request)
    result = small(webui, {**ON, "img2img_first": redraw, "return_stages": True}, **request)
    assert_good(result, TWICE, (64, 64))
    plain = small(webui, None, **request)
    assert (result.digests[1] == plain.digests[0]) == redraw


REFERENCES = {"klein": {NO_REFERENCE: False}, "anima": {"anima_do_reference": True}}
"""Maps checkpoints to the settings with which the webui uses the upload of img2img as a reference image."""


@pytest.mark.parametrize("family", REFERENCES, indirect=True)
def test_reference_images_are_refused(webui: Webui, family: Any, upload: Image.Image) -> None:
    """After a refused job, a job without a reference image gives the same image as before the refused job."""
    plain = small(webui)
    kind = next(kind for kind, name in FAMILIES.items() if name == family["name"])
    request = {"path": "img2img", "init_images": [png(upload)], "denoising_strength": 0.6}
    with options(webui, **REFERENCES[kind]):
        result = small(webui, **request)
    if kind == "anima":
        # Forge Neo passes the last reference image to Anima until it encodes an upload while the setting is off. This
        # is so even without DemoFusion
        small(webui, None, **request)
    assert f"does not work with reference images of {family['name']}" in result.infotexts[0]
    assert result.sizes == [(64, 64)]
    assert small(webui).digests == plain.digests


@pytest.mark.parametrize("family", ["schnell"], indirect=True)
def test_img2img_with_kontext_is_refused(webui: Webui, family: Any, upload: Image.Image) -> None:
    """The webui recognizes Kontext only by the name of the checkpoint."""
    flow = webui.call("options")["sd_model_checkpoint"]
    with linked(webui, "schnell.safetensors", "demofusion-test-kontext.safetensors") as name:
        request = {"path": "img2img", "init_images": [png(upload)], "denoising_strength": 0.6}
        result = small(webui, override_settings={"sd_model_checkpoint": name}, **request)
        webui.call("options", {"sd_model_checkpoint": flow})
        small(webui, None)
    assert "does not work with reference images of Flux.1" in result.infotexts[0]
    assert result.sizes == [(64, 64)]


@pytest.mark.parametrize("family", ["schnell"], indirect=True)
def test_images_are_the_same_after_another_kind_of_model_was_loaded(webui: Webui, family: Any) -> None:
    """SDXL and a flow model are loaded in turn. Each of them is loaded twice in the same process."""
    flow = webui.call("options")["sd_model_checkpoint"]
    # the webui recognizes rectified-flow SDXL only by its file name, so this copy is loaded as ordinary SDXL
    with linked(webui, "rectified-sdxl.safetensors", "demofusion-test-plain-sdxl.safetensors") as name:
        jobs = [name, flow, name, flow]
        made = [small(webui, override_settings={"sd_model_checkpoint": job}, cfg_scale=4) for job in jobs]
        webui.call("options", {"sd_model_checkpoint": flow})
        small(webui, None)
    for result in made:
        assert_good(result, TWICE)
    assert made[0].digests == made[2].digests
    assert made[1].digests == made[3].digests
    assert made[0].digests != made[1].digests


def test_every_checkpoint_is_recognized_before_it_is_loaded(webui: Webui) -> None:
    """The webui loads a checkpoint only when you press Generate, but the panel describes the checkpoint before that."""
    found = facts_or_skip(webui, "files")
    ours = {kind: found[f"{kind}.safetensors"] for kind in FAMILIES if f"{kind}.safetensors" in found}
    assert ours
    assert ours == {kind: FAMILIES[kind] for kind in ours}


@pytest.mark.parametrize("preset", ["Balanced", "Turbo"])
def test_a_preset_that_the_request_names_is_used(webui: Webui, family: Any, preset: str) -> None:
    """In these tests, the default preset is *Paper*. The numbers of steps are usual for the two presets."""
    result = small(webui, {"enabled": True, "scale": 2, "preset": preset}, steps=12 if preset == "Balanced" else 4)
    assert_good(result, TWICE)
    assert f"DemoFusion preset: {preset}" in result.infotexts[0]
