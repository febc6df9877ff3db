"""Tests "Keep colors" in txt2img and img2img, with hires fix, several upscalers and masks, and after an error."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from in_process import BASE, Webui
from modules import processing
from PIL import Image
from reports import Reports

from lib_demofusion.host import stage_loop
from lib_demofusion.host.images import base_image, inpainting
from lib_demofusion.host.images.base_image import BaseColors, known_base
from lib_demofusion.method.plan import make_plan
from lib_demofusion.settings.reading import parse_settings

ON = {"enabled": True, "scale": 2, "keep_colors": True}


def drift(image: Image.Image, base: Image.Image) -> float:
    """Returns how far the mean colors of the same quarter of two images differ at most in a channel, from 0 to 255."""
    quarters = [np.asarray(one.resize((2, 2), Image.Resampling.BOX), float) for one in (image, base)]
    return float(np.abs(quarters[0] - quarters[1]).max())


def upload() -> Image.Image:
    """Returns a BASE x BASE image. Two channels are smooth, and the third has a sharp edge."""
    rows, columns = np.mgrid[:BASE, :BASE] / BASE
    return Image.fromarray((np.stack([rows, columns, (rows + columns > 1) * 0.7], 2) * 255).astype(np.uint8))


@pytest.fixture
def drifting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the decoder change the colors of images larger than the base image, as a stage with a real model can do."""
    real = processing.decode_latent_batch

    def decode(*args: Any, **kwargs: Any) -> Any:
        samples = real(*args, **kwargs)
        for index, sample in enumerate(samples):
            if sample.shape[-1] > BASE:
                samples[index] = sample * 0.8 + torch.tensor([0.15, -0.1, 0.05]).view(3, 1, 1)
        return samples

    monkeypatch.setattr(processing, "decode_latent_batch", decode)


@pytest.mark.parametrize(
    "settings",
    [
        {"preset": "Balanced"},
        {"preset": "Fast", "scale": 3},
        {"upscaler": "Latent"},
        {"upscaler": "Lanczos (pixels)", "scale": 3, "stages": "every"},
        {"preset": "Balanced", "scale": 1.625},
        {"preset": "Balanced", "width": 3 * BASE, "height": 2 * BASE},
    ],
    ids=str,
)
@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_every_final_image_has_the_colors_of_its_base_image(
    webui: Webui, drifting: None, settings: dict[str, Any], tab: str
) -> None:
    source = {"init_image": upload()} if tab == "img2img" else {}
    off, on = (
        webui.job({**ON, "return_stages": True, **settings, "keep_colors": kept}, batch_size=2, **source)
        for kept in (False, True)
    )
    # the batch has two images: first their final images, then their base images, then the images of the stages
    count = len(on.images) // 2
    bases = [image.crop(_shown(on.images[0], image)) for image in on.images[2:4]]
    assert count >= 2
    for index in (0, 1):
        base = upload().crop(_shown(on.images[0], upload())) if source else bases[index]
        # the decoder of `drifting` changes a mean color by more than 5 of 255 levels. "Keep colors" leaves at most 1
        assert drift(off.images[index], base) > 5
        assert drift(on.images[index], base) <= 1
    assert on.images[2].tobytes() == off.images[2].tobytes()


def _shown(final: Image.Image, base: Image.Image) -> tuple[int, int, int, int]:
    """Returns the part of the base image that the final image shows, as (left, top, right, bottom)."""
    height = round(base.width * final.height / final.width / 8) * 8
    top = (base.height - height) // 16 * 8
    return 0, top, base.width, top + height


def test_the_images_of_earlier_stages_have_the_colors_of_the_base_image_too(webui: Webui, drifting: None) -> None:
    settings = {**ON, "scale": 3, "stages": "every", "upscaler": "Latent", "return_stages": True}
    final, base, second = webui.job(settings).images
    assert [drift(image, base) <= 1 for image in (final, second)] == [True, True]


def test_showing_the_stages_does_not_change_the_final_image(webui: Webui, drifting: None) -> None:
    settings = {**ON, "scale": 3, "stages": "every", "upscaler": "Lanczos"}
    one, other = (webui.job({**settings, "return_stages": shown}).images[0] for shown in (False, True))
    assert one.tobytes() == other.tobytes()


def test_no_colors_are_computed_if_keep_colors_is_off(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> None:
    def called(*args: Any) -> None:
        raise AssertionError

    plain = webui.job({**ON, "keep_colors": False, "upscaler": "Lanczos"})
    monkeypatch.setattr(base_image, "match_colors_", called)
    monkeypatch.setattr(stage_loop, "BaseColors", called)
    monkeypatch.setattr(stage_loop, "known_base", called)
    again = webui.job({**ON, "keep_colors": False, "upscaler": "Lanczos"})
    assert again.images[0].tobytes() == plain.images[0].tobytes()


def test_an_image_is_not_lost_if_keep_colors_fails(
    webui: Webui, monkeypatch: pytest.MonkeyPatch, reported: Reports
) -> None:
    reported.expect('"Keep colors" failed')

    def full(*args: Any) -> None:
        raise MemoryError("no memory")

    monkeypatch.setattr(base_image, "match_colors_", full)
    result = webui.job({**ON, "upscaler": "Lanczos"})
    assert result.images[0].width == 2 * BASE
    assert '"Keep colors" failed, so the image has the colors of the model: no memory' in result.comments


def plan_of(width: int = 2 * BASE, height: int = 2 * BASE) -> Any:
    """Plans a job with a base image of BASE pixels and a final image of width x height pixels."""
    return make_plan(parse_settings({**ON, "width": width, "height": height}), (BASE // 8, BASE // 8))


def test_with_hires_fix_the_result_of_hires_fix_is_the_base_image() -> None:
    samples = processing.DecodedSamples([torch.full((3, BASE, BASE), 0.25)])
    known = known_base(SimpleNamespace(), samples, False)
    assert known is not None
    picture = torch.zeros(3, 2 * BASE, 2 * BASE)
    colors = BaseColors(SimpleNamespace(mask=None), plan_of())
    colors.remember(known)
    pictures = [picture]
    colors.keep(pictures, lambda: pytest.fail("the base image is already known, so it must not be decoded"))
    assert float(pictures[0].mean()) == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize(
    "request_",
    [
        {"init_images": None},
        {"init_images": [upload()], "mask": torch.ones(1)},
        {"init_images": [upload()], "resize_mode": 3},
    ],
    ids=["txt2img", "inpainting", "latent resize"],
)
def test_the_pixels_of_the_base_image_are_unknown_in_txt2img_inpainting_and_latent_resize(
    request_: dict[str, Any],
) -> None:
    # the resize mode 3 is "Just resize (latent upscale)"
    assert known_base(SimpleNamespace(**{"resize_mode": 0, "mask": None, **request_}), torch.zeros(1), False) is None


def test_an_uploaded_image_is_the_base_image_unless_it_is_redrawn() -> None:
    """The last argument of `known_base` is the field `img2img_first`. The batch has two images."""
    p = SimpleNamespace(init_images=[upload()], resize_mode=0, mask=None, width=BASE, height=BASE)
    assert known_base(p, torch.zeros(2, 4, 8, 8), True) is None
    assert len(known_base(p, torch.zeros(2, 4, 8, 8), False) or ()) == 2


@pytest.mark.parametrize("shape", [(4, 8, 8), (1, 4, 8, 8), (8, 8)], ids=["webui", "Forge Neo", "one channel"])
def test_with_a_mask_colors_change_only_in_the_painted_area(shape: tuple[int, ...]) -> None:
    """The right half is painted. Up to 8 pixels from its border, the test accepts any color."""
    right = (torch.arange(8) >= 4).half().expand(shape)
    p = SimpleNamespace(mask=1 - right, nmask=right)
    plan = plan_of()
    painted = inpainting.painted(p, plan)
    assert painted is not None
    assert painted.shape == (1, 8, 8)
    colors = BaseColors(p, plan)
    colors.remember([torch.zeros(3, BASE, BASE)])
    pictures = [torch.full((3, 2 * BASE, 2 * BASE), 0.2)]
    colors.keep(pictures, list)
    assert torch.equal(pictures[0][..., : BASE - 8], torch.full((3, 2 * BASE, BASE - 8), 0.2))
    assert float(pictures[0][..., BASE + 8 :].abs().max()) < 0.01


def test_images_of_a_video_vae_get_the_colors_of_the_base_image_too() -> None:
    """In Forge Neo, the VAE of Wan decodes an image to the shape (1, 3, H, W)."""
    colors = BaseColors(SimpleNamespace(mask=None), plan_of())
    colors.remember([torch.full((1, 3, BASE, BASE), 0.3)])
    pictures = [torch.full((1, 3, 2 * BASE, 2 * BASE), 0.2)]
    colors.keep(pictures, list)
    assert pictures[0].shape == (1, 3, 2 * BASE, 2 * BASE)
    assert float(pictures[0].mean()) == pytest.approx(0.3, abs=2e-3)


def test_images_in_bfloat16_are_converted_to_float32() -> None:
    colors = BaseColors(SimpleNamespace(mask=None), plan_of())
    colors.remember([torch.full((3, BASE, BASE), 0.3, dtype=torch.bfloat16)])
    pictures = [torch.full((3, 2 * BASE, 2 * BASE), 0.2, dtype=torch.bfloat16)]
    colors.keep(pictures, list)
    assert pictures[0].dtype == torch.float32
    assert float(pictures[0].mean()) == pytest.approx(0.3, abs=2e-3)
