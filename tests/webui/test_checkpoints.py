"""Tests every kind of tiny checkpoint in a real webui, with samplers of k-diffusion, timestep samplers and LCM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from webui.conftest import Webui, png
from webui.test_generate import ON, assert_good, difference

pytestmark = pytest.mark.webui

TEXT = ["sd1-v", "sd1-inpainting", "sd1-unclip", "sdxl", "sdxl-v", "sdxl-inpainting", "sdxl-refiner"]
IMAGE = ["sd1-v", "sd1-inpainting", "sd1-edit", "sdxl", "sdxl-v", "sdxl-inpainting"]
"""The kinds of tiny checkpoints: TEXT for the tests in txt2img, and IMAGE for those in img2img."""
SAMPLERS = ["Euler a", "DPM++ 2M", "Heun", "DDIM", "UniPC", "LCM"]

Use = Callable[[str], None]


@pytest.fixture(scope="module")
def use(webui: Webui) -> Iterator[Use]:
    """Returns a function that loads the tiny checkpoint of a kind. Restores the previous checkpoint at the end."""
    before = webui.call("options")["sd_model_checkpoint"]
    known = {entry["model_name"] for entry in webui.call("sd-models")}

    def load(kind: str) -> None:
        if f"tiny-{kind}" not in known:
            pytest.skip(f"the webui has no tiny-{kind}")
        webui.call("options", {"sd_model_checkpoint": f"tiny-{kind}.safetensors"})

    yield load
    webui.call("options", {"sd_model_checkpoint": before})


@pytest.fixture(scope="module")
def upload() -> Image.Image:
    squares = np.random.default_rng(1).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(squares.repeat(16, axis=0).repeat(16, axis=1))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", TEXT)
def test_txt2img_with_every_checkpoint_and_sampler(webui: Webui, use: Use, kind: str, sampler: str) -> None:
    use(kind)
    assert_good(webui.generate({**ON, "scale": 2}, sampler_name=sampler, steps=3), (256, 256))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", IMAGE)
def test_img2img_with_every_checkpoint_and_sampler(
    webui: Webui, use: Use, upload: Image.Image, kind: str, sampler: str
) -> None:
    use(kind)
    request: dict[str, Any] = {"path": "img2img", "init_images": [png(upload)], "image_cfg_scale": 1.5}
    assert_good(webui.generate({**ON, "scale": 2}, sampler_name=sampler, steps=3, **request), (256, 256))


@pytest.mark.parametrize("kind", ["sd1-inpainting", "sd1-edit", "sdxl-inpainting"])
@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
def test_an_upload_is_cropped_to_another_aspect_ratio(
    webui: Webui, use: Use, upload: Image.Image, kind: str, sampler: str
) -> None:
    """These checkpoints get an image as a condition. The stages crop the base image, and also crop this condition."""
    use(kind)
    request: dict[str, Any] = {"path": "img2img", "init_images": [png(upload)], "image_cfg_scale": 1.5}
    wide = {**ON, "width": 384, "height": 160, "denoising_strength": 0.5}
    assert_good(webui.generate(wide, sampler_name=sampler, **request), (384, 160))


@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
@pytest.mark.parametrize("kind", ["sd1-inpainting", "sdxl-inpainting"])
def test_inpainting_with_inpainting_checkpoints(
    webui: Webui, use: Use, upload: Image.Image, kind: str, sampler: str
) -> None:
    use(kind)
    mask = Image.new("L", upload.size, 0)
    mask.paste(255, (32, 32, 96, 96))
    request: dict[str, Any] = {"path": "img2img", "init_images": [png(upload)], "mask": png(mask), "mask_blur": 0}
    assert_good(webui.generate({**ON, "scale": 2}, sampler_name=sampler, **request), (256, 256))


@pytest.mark.parametrize("kind", TEXT)
def test_images_of_a_batch_equal_single_images(webui: Webui, use: Use, kind: str) -> None:
    use(kind)
    if "inpainting" in kind:
        pytest.skip(
            "in a batch, the webui encodes the condition of inpainting checkpoints with the seed of the last image"
        )
    batch = webui.generate({**ON, "scale": 2}, batch_size=2, steps=3, do_not_save_grid=True)
    for i, picture in enumerate(batch.images[-2:]):
        assert difference(picture, webui.generate({**ON, "scale": 2}, seed=1 + i, steps=3).images[0]) <= 1


@pytest.mark.parametrize("kind", TEXT)
def test_the_next_image_without_demofusion_is_unchanged(webui: Webui, use: Use, kind: str) -> None:
    """The webui keeps the conds of a prompt for the next request, so DemoFusion must not change them."""
    use(kind)
    plain = webui.generate(steps=3)
    first = webui.generate({**ON, "scale": 2}, steps=3)
    assert webui.generate({**ON, "scale": 2}, steps=3).digests == first.digests
    assert webui.generate(steps=3).digests == plain.digests


def test_sdxl_gets_the_final_size_in_every_stage(webui: Webui, use: Use) -> None:
    """SDXL gets the final size as a condition, so another final size changes the image of the 1.5x stage.

    The result contains the final image, the base image and the image of the 1.5x stage, in this order.
    """
    use("sdxl")
    shown = {"return_stages": True, "jitter": False}
    small = webui.generate({**ON, **shown, "stages": "1,1.5,2"}, steps=3)
    large = webui.generate({**ON, **shown, "stages": "1,1.5,3"}, steps=3)
    assert [result.sizes[-1] for result in (small, large)] == [(192, 192)] * 2
    assert difference(small.images[-2], large.images[-2]) == 0
    assert difference(small.images[-1], large.images[-1]) > 0


@pytest.mark.parametrize("kind", ["sd1-v", "sdxl-v"])
@pytest.mark.parametrize("sampler", ["Euler", "DPM++ 2M", "DDIM", "UniPC"])
def test_the_noise_schedule_zero_terminal_snr(webui: Webui, use: Use, kind: str, sampler: str) -> None:
    use(kind)
    try:
        webui.call("options", {"sd_noise_schedule": "Zero Terminal SNR"})
        assert_good(webui.generate({**ON, "scale": 2}, sampler_name=sampler), (256, 256))
    finally:
        webui.call("options", {"sd_noise_schedule": "Default"})
