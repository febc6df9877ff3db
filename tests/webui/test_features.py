"""Tests DemoFusion together with the webui's other features, in a real webui."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from webui.conftest import Webui, png
from webui.test_generate import ON, assert_good

pytestmark = pytest.mark.webui

BOX = (40, 40, 90, 100)
"""The masked area of the upload in pixels: left, top, right and bottom."""


@pytest.fixture(scope="module")
def original() -> Image.Image:
    return Image.radial_gradient("L").resize((128, 128)).convert("RGB")


def inpaint(original: Image.Image, **request: Any) -> dict[str, Any]:
    """Returns an img2img request in which BOX is masked. `request` contains further fields."""
    mask = Image.new("L", original.size, 0)
    ImageDraw.Draw(mask).rectangle(BOX, fill=255)
    common = {"denoising_strength": 0.6, "mask_blur": 2, "path": "img2img"}
    return {**common, "init_images": [png(original)], "mask": png(mask), **request}


def distance(picture: Image.Image, original: Image.Image) -> np.ndarray:
    """Returns the difference (H, W) between an image and the upscaled original, from 0 to 255.

    Each value is the largest difference of the three color channels of a pixel.
    """
    big = original.resize(picture.size, Image.Resampling.LANCZOS)
    return np.abs(np.asarray(picture, dtype=int) - np.asarray(big, dtype=int)).max(axis=2)


@pytest.mark.parametrize("only_masked", [False, True])
@pytest.mark.parametrize("fill", [0, 1, 2, 3])
def test_outside_the_mask_is_the_upscaled_original(
    webui: Webui, original: Image.Image, fill: int, only_masked: bool
) -> None:
    request = inpaint(original, inpainting_fill=fill, inpaint_full_res=only_masked, inpaint_full_res_padding=8)
    result = webui.generate({**ON, "scale": 2}, **request)
    assert_good(result, (256, 256))
    away = distance(result.images[0], original)
    # at 2x, the mask begins at row 80 and column 80, and the blur of the mask reaches a little further
    assert away[:60].max() <= 1
    assert away[:, :60].max() <= 1
    assert away[90:190, 90:170].mean() > 20  # inside the mask


HALO = 20
"""The width of the border around the mask that the webui's Soft inpainting changes even without DemoFusion.

The width is in pixels of the base image. The filters of Soft inpainting reach two latent cells (16 pixels) beyond the
mask, which is itself larger by its blur.
"""

SOFT = {"Soft Inpainting": {"args": [True, 1, 0.5, 4, 0, 0.5, 2]}}
"""The script that enables Soft inpainting, with the default values of its sliders."""


@pytest.mark.parametrize(
    ("only_masked", "fill", "scale"), [*((only, fill, 2) for only in (False, True) for fill in range(4)), (False, 1, 3)]
)
def test_soft_inpainting_keeps_the_upscaled_original_outside_the_mask(
    webui: Webui, original: Image.Image, only_masked: bool, fill: int, scale: int
) -> None:
    request = inpaint(original, inpainting_fill=fill, inpaint_full_res=only_masked, inpaint_full_res_padding=8)
    result = webui.generate({**ON, "scale": scale}, **request, more_scripts=SOFT, batch_size=2, do_not_save_grid=True)
    assert result.sizes == [(128 * scale, 128 * scale)] * 2
    assert "Soft inpainting enabled: True" in result.infotexts[0]
    for picture in result.images:
        away = distance(picture, original)
        left, top, right, bottom = ((n + margin) * scale for n, margin in zip(BOX, (-HALO, -HALO, HALO, HALO)))
        outside = np.ones_like(away, bool)
        outside[top:bottom, left:right] = False
        assert away[outside].mean() <= 1
        assert away[50 * scale : 80 * scale, 50 * scale : 80 * scale].mean() > 20  # inside the mask


def test_soft_inpainting_does_not_change_a_plain_job(webui: Webui, original: Image.Image) -> None:
    request = inpaint(original)
    # the second of two images, because the webui's VAE encoder draws from a generator that depends on the previous job
    plain = [webui.generate(**request, more_scripts=SOFT) for _ in range(2)][1]
    webui.generate({**ON, "scale": 2}, **request, more_scripts=SOFT)
    assert webui.generate(**request, more_scripts=SOFT).digests == plain.digests


@pytest.mark.parametrize("sampler", ["DDIM", "UniPC"])
def test_soft_inpainting_is_refused_with_samplers_that_change_the_area_outside_the_mask(
    webui: Webui, original: Image.Image, sampler: str
) -> None:
    result = webui.generate({**ON, "scale": 2}, **inpaint(original), more_scripts=SOFT, sampler_name=sampler)
    assert result.sizes == [(128, 128)]
    assert "the area outside the mask would change" in result.infotexts[0]


def test_another_aspect_ratio_is_refused_with_only_masked(webui: Webui, original: Image.Image) -> None:
    request = inpaint(original, inpaint_full_res=True)
    result = webui.generate({**ON, "width": 384, "height": 256}, **request)
    assert result.sizes == [(128, 128)]
    assert "width: 384 is not valid. Use" in result.infotexts[0]
    whole = webui.generate({**ON, "width": 384, "height": 256}, **{**request, "inpaint_full_res": False})
    assert_good(whole, (384, 256))


def test_the_result_of_hires_fix_is_enlarged(webui: Webui) -> None:
    request = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.5}
    first = webui.generate({**ON, "scale": 2}, **request)
    assert_good(first, (384, 384))
    assert webui.generate({**ON, "scale": 2}, **request).digests == first.digests


def test_sd_upscale_is_refused(webui: Webui, original: Image.Image) -> None:
    request = {"path": "img2img", "init_images": [png(original)], "script_name": "SD upscale"}
    result = webui.generate(ON, **request, script_args=[None, 64, "None", 2.0])
    assert "scripts that upscale or outpaint in tiles" in result.infotexts[0]


def test_tiling_is_refused(webui: Webui) -> None:
    result = webui.generate(ON, tiling=True)
    assert result.sizes == [(128, 128)]
    assert "does not work with Tiling" in result.infotexts[0]


def test_each_cell_of_a_plot_uses_only_its_own_values(webui: Webui) -> None:
    args = webui.plot_args(("Upscale by", "1.5,2", None), ("Enabled", "", ["True", "False"]))
    result = webui.generate({"enabled": False}, script_name="x/y/z plot", script_args=args, steps=2)
    assert sorted(result.sizes[-4:]) == [(128, 128), (128, 128), (192, 192), (256, 256)]
    for size, text in zip(result.sizes[-4:], result.infotexts[-4:]):
        assert ("DemoFusion" in text) == (size != (128, 128))
        assert ("DemoFusion scale: 1.5" in text) == (size == (192, 192))


def test_the_plot_has_one_axis_for_every_field(webui: Webui) -> None:
    plot = next(entry for entry in webui.call("script-info") if entry["name"] == "x/y/z plot")
    ours = next(entry for entry in webui.call("script-info") if entry["name"] == "demofusion hires")
    axes = [label for label in plot["args"][0]["choices"] if label.startswith("[DemoFusion] ")]
    # view_batch has an axis but no control on the panel
    assert len(axes) == len(set(axes)) == len(ours["args"]) + 1
