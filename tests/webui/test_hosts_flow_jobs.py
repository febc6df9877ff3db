"""Tests typical jobs of users on flow models with random weights. See test_hosts_flow.py for the command.

The tests run on five models. These models have different text encoders and different forms of latents.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from webui.conftest import Webui, interrupted, png
from webui.flow_families import FAMILIES, ON, TWICE, family, pixels, small, webui
from webui.test_api_and_scripts import options
from webui.test_generate import assert_good

__all__ = ["family", "webui"]

LATENT = 3
"""The number of the resize mode *Just resize (latent upscale)*."""
KINDS = ("chroma", "qwen", "ernie", "zimage", "anima")

pytestmark = [
    pytest.mark.webui,
    pytest.mark.slow,
    pytest.mark.parametrize("family", KINDS, indirect=True),
]


@pytest.fixture(scope="module")
def large() -> Image.Image:
    """Returns an upload of 300 x 500 pixels. Its sides are no multiples of 8 pixels."""
    drawn = np.random.default_rng(3).integers(0, 255, (25, 15, 3), dtype=np.uint8)
    return Image.fromarray(drawn).resize((300, 500), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("mode", range(4), ids=["just resize", "crop", "fill", "latent"])
@pytest.mark.parametrize("redraw", [False, True])
def test_a_large_upload_is_resized(webui: Webui, family: Any, large: Image.Image, mode: int, redraw: bool) -> None:
    """The base image is the resized upload, or the result of the webui's own img2img if `redraw` is True."""
    if mode == LATENT and family["name"] == FAMILIES["ernie"]:
        pytest.skip("Forge Neo itself cannot encode an upload of this size for this model")
    request = {"path": "img2img", "init_images": [png(large)], "denoising_strength": 0.6, "resize_mode": mode}
    result = small(webui, {**ON, "img2img_first": redraw, "return_stages": True}, height=128, **request)
    assert_good(result, (128, 256), (64, 128))
    assert (result.digests[1] == small(webui, None, height=128, **request).digests[0]) == redraw


def test_two_uploads_in_a_batch(webui: Webui, family: Any, large: Image.Image) -> None:
    """The first image equals the image of the first upload alone, up to 2 of 255. The second image is different."""
    uploads = [png(large), png(large.rotate(180))]
    request = {"path": "img2img", "denoising_strength": 0.6}
    both = small(webui, init_images=uploads, batch_size=2, **request)
    assert_good(both, TWICE, TWICE)
    alone = small(webui, init_images=uploads[:1], **request)
    assert np.abs(pixels(both.images[0]) - pixels(alone.images[0])).max() <= 2
    assert np.abs(pixels(both.images[0]) - pixels(both.images[1])).mean() > 5


def test_an_interrupt_in_the_last_stage_returns_the_previous_stage(webui: Webui, family: Any) -> None:
    on = {**ON, "scale": 3, "stages": "1,2,3", "view_batch": 1}
    stopped = interrupted(webui, lambda: small(webui, on, steps=4), at="2/2")
    assert "DemoFusion stopped" in stopped.infotexts[0]
    assert stopped.digests[0] == small(webui, {**on, "scale": 2, "stages": "1,2"}, steps=4).digests[0]


def test_a_negative_prompt_has_no_effect_at_cfg_scale_1(webui: Webui, family: Any) -> None:
    made = [small(webui, negative_prompt=text).digests for text in ("", "blur", "red, " * 60)]
    assert made[0] == made[1] == made[2]
    assert small(webui, negative_prompt="", cfg_scale=4).digests != small(webui, cfg_scale=4).digests


def test_a_plot_over_scales_with_two_batches(webui: Webui, family: Any) -> None:
    """Each of the four cells runs two batches, and the plot shows only the first image of the cell."""
    args = webui.plot_args(("Upscale by", "1.5, 2", None), ("Hires steps", "1, 2", None))
    result = small(webui, script_name="x/y/z plot", script_args=args, n_iter=2)
    assert "DemoFusion error" not in str(result.infotexts)
    assert result.sizes.count((96, 96)) == result.sizes.count(TWICE) == 2


def test_every_stage_of_two_batches_of_two_is_saved(webui: Webui, family: Any, tmp_path: Path) -> None:
    own = {"samples_save": True, "save_to_dirs": False, "outdir_txt2img_samples": str(tmp_path)}
    with options(webui, **own):
        result = small(webui, {**ON, "save_stages": True}, save_images=True, batch_size=2, n_iter=2)
    # the image before these four is their grid
    assert result.sizes[-4:] == [TWICE] * 4
    sizes = []
    for path in tmp_path.iterdir():
        with Image.open(path) as image:
            sizes.append(image.size)
    assert sorted(sizes) == [(64, 64)] * 4 + [TWICE] * 4


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("fill", range(4), ids=["fill", "original", "latent noise", "latent nothing"])
def test_a_mask_on_a_large_upload(webui: Webui, family: Any, large: Image.Image, fill: int, whole: bool) -> None:
    """With *Only masked*, the size of the result is twice the size of the upload, not of the request."""
    if family["other_axes"]:
        pytest.skip("inpainting is refused with this model")
    mask = Image.new("L", large.size, 0)
    mask.paste(255, (100, 100, 250, 400))
    request = {"init_images": [png(large)], "mask": png(mask), "denoising_strength": 0.7, "mask_blur": 4}
    area = {"inpainting_fill": fill, "inpaint_full_res": not whole, "inpaint_full_res_padding": 16}
    result = small(webui, path="img2img", height=128, **request, **area)
    assert_good(result, (128, 256) if whole else (600, 1000))


UNUSUAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lowest strength": ({"denoising_strength": 0.05}, {}),
    "one hires step": ({"hires_steps": 1}, {}),
    "many hires steps": ({"hires_steps": 20}, {}),
    "one step": ({}, {"steps": 1}),
    "Turbo with one step": ({"preset": "Turbo"}, {"steps": 1}),
    "8x at once": ({"scale": 8, "stages": "fewest"}, {"steps": 1}),
    "extra noise": ({"extra_noise": 0.2}, {}),
    "keep colors": ({"keep_colors": True}, {}),
    "empty prompts": ({}, {"prompt": "", "negative_prompt": "", "cfg_scale": 4}),
    "long prompt": ({}, {"prompt": "a red tree, " * 120, "cfg_scale": 4}),
    "variation seed": ({}, {"subseed": 5, "subseed_strength": 0.5, "seed_resize_from_w": 128}),
    "panorama": ({"scale": 1.5}, {"width": 512}),
}
"""Fields of DemoFusion and of the request with unusual values. Some values are at the ends of their ranges."""


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_values_of_fields(webui: Webui, family: Any, name: str) -> None:
    on, request = UNUSUAL[name]
    made = {**ON, **on}
    result = small(webui, made, **request)
    assert_good(result, (int(request.get("width", 64) * made["scale"]), int(64 * made["scale"])))


def test_every_sampler_makes_an_image_or_is_refused(webui: Webui, family: Any) -> None:
    """Euler works with every flow-matching model, so it must not be refused."""
    for name in [entry["name"] for entry in webui.call("samplers")]:
        result = small(webui, sampler_name=name, steps=4)
        if "does not work with the sampler" in result.infotexts[0] and name != "Euler":
            assert result.sizes == [(64, 64)], name
        else:
            assert_good(result, TWICE)


def test_every_scheduler_makes_an_image_or_the_message_reports_nan(webui: Webui, family: Any) -> None:
    """In Forge Neo, images of flow models with the scheduler Uniform are black, with and without DemoFusion."""
    for name in [entry["label"] for entry in webui.call("schedulers")]:
        plain, result = small(webui, None, scheduler=name, steps=4), small(webui, scheduler=name, steps=4)
        if pixels(plain.images[0]).std() == 0:
            assert "the model returned NaN" in result.infotexts[0], name
            assert "choose another checkpoint or schedule type" in result.infotexts[0], name
        else:
            assert_good(result, TWICE)
