"""Tests unusual requests on flow models with random weights. See test_hosts_flow.py for the command.

The tests run on three transformers. Flux.1 schnell has latents with four axes, and Qwen-Image has latents with five
axes. Ernie-Image has packed latents, in which each position covers 16x16 pixels.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import Image
from webui.conftest import Webui, decoded, facts_or_skip, progress_of_stages
from webui.flow_families import FAMILIES, ON, TWICE, family, pixels, small, webui
from webui.test_api_and_scripts import options
from webui.test_generate import assert_good
from webui.test_hosts import PREVIEWS, hires_fix

__all__ = ["family", "webui"]

KINDS = ("schnell", "qwen", "ernie")
"""One checkpoint for each of the three forms of latents."""

pytestmark = [
    pytest.mark.webui,
    pytest.mark.slow,
    pytest.mark.parametrize("family", KINDS, indirect=True),
]


def test_sizes_of_a_portrait_are_rounded_to_multiples_of_16_pixels_in_three_stages(webui: Webui, family: Any) -> None:
    """At 1.3x and 1.7x, the sides of 64x128 pixels are not multiples of 16 pixels. The tiles overlap and jitter."""
    fields = {"enabled": True, "scale": 1.7, "stages": "1,1.3,1.5,1.7", "view_batch": 16, "return_stages": True}
    result = small(webui, fields, height=128, cfg_scale=4)
    assert_good(result, (112, 224), (64, 128), (80, 160), (96, 192))
    assert "109x218 is rounded to 112x224" in result.infotexts[0]
    assert small(webui, fields, height=128, cfg_scale=4).digests == result.digests


def images_of_prompts(webui: Webui, demofusion: Any, *prompts: str, **request: Any) -> list[list[Image.Image]]:
    """Returns two lists: the images of a prompt matrix in one batch, and images of the same prompts one by one."""
    matrix = {"script_name": "prompt matrix", "script_args": [False, False, "positive", "comma", 0]}
    both = small(webui, demofusion, prompt="|".join(prompts), batch_size=len(prompts), **matrix, **request)
    assert "DemoFusion error" not in both.infotexts[-1]
    texts = [text.split("\n")[0] for text in both.infotexts[-2:]]
    alone = [small(webui, demofusion, prompt=text, **request).images[0] for text in texts]
    return [[image for image in both.images if image.size == alone[0].size], alone]


@pytest.mark.parametrize("cfg_scale", [1, 4])
def test_a_batch_of_two_prompts_of_different_lengths_equals_single_images(
    webui: Webui, family: Any, cfg_scale: int
) -> None:
    """The longer prompt needs more than one chunk of 75 tokens.

    For some models, Forge Neo pads the shorter prompt in a batch. This changes the image of this prompt, even without
    DemoFusion. The test therefore compares an image in a batch with the single image only if these two are equal
    without DemoFusion, up to 2 of 255.
    """
    prompts, request = ("a tree", "red, " * 90), {"cfg_scale": cfg_scale}
    plain, made = (
        [[pixels(image) for image in images] for images in images_of_prompts(webui, on, *prompts, **request)]
        for on in (None, ON)
    )
    agree = [np.abs(batch - alone).max() <= 2 for batch, alone in zip(*plain)]
    # the longer prompt, which is never padded
    assert agree[1]
    for same, batch, alone in zip(agree, *made):
        assert not same or np.abs(batch - alone).max() <= 2
    assert np.abs(made[0][0] - made[0][1]).mean() > 1


def test_full_previews_show_the_whole_image_of_a_stage(webui: Webui, family: Any) -> None:
    """With the preview method *Full*, the webui decodes previews with the autoencoder while the stage runs."""
    full = {**PREVIEWS, "show_progress_type": "Full"}
    run = partial(small, webui, {**ON, "view_batch": 1}, width=128, steps=6)
    with options(webui, **full):
        result, answers = progress_of_stages(webui, run)
    assert_good(result, (256, 128))
    seen = [decoded(answer["current_image"]) for answer in answers if answer["current_image"]]
    assert seen
    assert all(image.width == 2 * image.height for image in seen)
    assert all(pixels(image).std() > 5 for image in seen)


def test_a_hires_pass_with_another_distilled_cfg_does_not_change_later_jobs(webui: Webui, family: Any) -> None:
    plain = small(webui, None, cfg_scale=4)
    hires = {**hires_fix(webui), "hr_distilled_cfg": 9.0, "hr_cfg": 4.0}
    assert_good(small(webui, ON, cfg_scale=4, **hires), (256, 256))
    assert small(webui, None, cfg_scale=4).digests == plain.digests
    # this job tests only that a stage still runs after hires fix
    assert small(webui, ON, cfg_scale=4).sizes == [TWICE]


def test_memory_is_reserved_for_a_batch_of_views(webui: Webui, family: Any) -> None:
    """Compares the webui's memory estimates for the base image, for single views, and for a batch of 4 views.

    A view has the size of the base image, so the estimate for a single view equals the estimate for the base image. The
    estimate for 4 views is 4 times as large.
    """
    assert facts_or_skip(webui, "memory") is not None
    small(webui, {**ON, "view_batch": 1}, cfg_scale=4)
    alone = facts_or_skip(webui, "memory")
    small(webui, {**ON, "view_batch": 4}, cfg_scale=4)
    four = facts_or_skip(webui, "memory")
    # a record contains the width of the latent and the estimate in bytes (demofusion_test_memory.py)
    base, stage = alone[0], alone[-1]
    assert stage[0] == 2 * base[0]
    assert stage[1] == pytest.approx(base[1], rel=1e-3)
    assert four[-1][1] == pytest.approx(4 * base[1], rel=1e-3)


def test_the_webuis_own_tiled_decoding(webui: Webui, family: Any) -> None:
    """The image is similar to the image that is decoded at once, but not equal.

    The webui decodes in tiles of 64x64 positions of the latent, so the latent must be larger than one tile. Packed
    latents need a larger scale, because each position covers 16x16 pixels.
    """
    scale = 6 if family["name"] == FAMILIES["ernie"] else 3
    on, request = {**ON, "scale": scale, "stages": "fewest"}, {"width": 192, "height": 192, "steps": 1}
    whole = small(webui, on, **request)
    facts_or_skip(webui, "tiles?on=true")
    try:
        tiles = small(webui, on, **request)
    finally:
        facts_or_skip(webui, "tiles?on=false")
    assert_good(tiles, (scale * 192, scale * 192))
    assert tiles.digests != whole.digests
    assert np.corrcoef(pixels(tiles.images[0]).ravel(), pixels(whole.images[0]).ravel())[0, 1] > 0.5
