"""Tests the base image in jobs with extra networks, a refiner, hires fix, or the webui's settings for noise.

Also tests that the same upload always gives the same image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from in_process import BASE, Webui, sizes
from modules import devices, extra_networks, processing, scripts, sd_models, shared
from PIL import Image
from reports import Reports
from tiny import TinyModel

ON = {"enabled": True, "scale": 2}


class ScriptOfWebui(scripts.Script):
    """A script that imitates a feature of the webui. Its hooks run before the hooks of DemoFusion."""

    alwayson = True
    filename = "another.py"

    def title(self) -> str:
        return "another"


@pytest.fixture
def before(webui: Webui) -> Iterator[Callable[[ScriptOfWebui], None]]:
    """Returns a function that inserts a script before DemoFusion's script in txt2img.

    After the test, the fixture removes the script and loads the original model again.
    """
    runner = scripts.scripts_txt2img
    own = list(runner.alwayson_scripts)
    yield lambda script: runner.alwayson_scripts.insert(0, script)
    runner.alwayson_scripts[:] = own
    sd_models.use_model(webui.small, "random")


class Networks(ScriptOfWebui):
    """Imitates hires fix with LoRAs. After the hires pass, the LoRAs of the hires prompt stay active."""

    def __init__(self, base: dict[str, Any], hires: dict[str, Any]):
        self.base, self.hires = base, hires

    def process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        p.hr_upscale_to_x = p.hr_upscale_to_y = BASE
        p.extra_network_data, p.hr_extra_network_data = self.base, self.hires
        extra_networks.activate(p, p.extra_network_data)

    def post_sample(self, p: Any, ps: Any, *args: Any) -> None:
        extra_networks.activate(p, p.hr_extra_network_data)


@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize(("base", "hires"), [({"lora": ["L"]}, {}), ({}, {"lora": ["L"]}), ({"lora": ["L"]},) * 2])
def test_the_stages_use_the_extra_networks_of_the_main_prompt(
    webui: Webui,
    before: Callable,
    monkeypatch: pytest.MonkeyPatch,
    base: dict[str, Any],
    hires: dict[str, Any],
    iterations: int,
) -> None:
    seen: list[dict[str, Any]] = []

    def unet(*args: Any) -> torch.Tensor:
        seen.append(dict(extra_networks.active))
        return TinyModel.unet(webui.small, *args)

    before(Networks(base, hires))
    monkeypatch.setattr(webui.small, "unet", unet, raising=False)
    webui.job(ON, enable_hr=True, n_iter=iterations)
    assert seen
    assert all(active == base for active in seen)


def test_no_extra_networks_are_activated_if_the_job_disables_them(webui: Webui, before: Callable) -> None:
    """DemoFusion does not change the networks that the imitation of hires fix has activated."""
    before(Networks({"lora": ["L"]}, {"lora": ["M"]}))
    webui.job(ON, enable_hr=True, disable_extra_networks=True)
    assert extra_networks.active == {"lora": ["M"]}


class Refiner(ScriptOfWebui):
    """Imitates a refiner: at the end of the base pass, loads another checkpoint, which has another VAE."""

    def post_sample(self, p: Any, ps: Any, *args: Any) -> None:
        sd_models.use_model(TinyModel(seed=1), "refiner")


@pytest.fixture
def refined(webui: Webui, before: Callable, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Makes all jobs of the test use the refiner. Returns the pixels of the image of such a job without DemoFusion."""
    plain = webui.job().images[0].tobytes()

    def reload(sd_model: Any = None, info: Any = None, forced_reload: bool = False) -> Any:
        return sd_models.use_model(webui.small, info.name_for_extra)

    monkeypatch.setattr(sd_models, "reload_model_weights", reload)
    before(Refiner())
    made = webui.job({}).images[0].tobytes()
    assert made != plain
    return made


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos", "Lanczos (pixels)"])
def test_the_base_image_after_a_refiner_is_decoded_as_without_demofusion(
    webui: Webui, refined: bytes, upscaler: str
) -> None:
    result = webui.job({**ON, "return_stages": True, "upscaler": upscaler})
    assert sizes(result) == [2 * BASE, BASE]
    assert result.images[1].tobytes() == refined


def test_the_base_image_after_a_refiner_is_returned_if_every_stage_fails(
    webui: Webui, refined: bytes, monkeypatch: pytest.MonkeyPatch, reported: Reports
) -> None:
    def unet(*args: Any) -> torch.Tensor:
        if shared.state.textinfo:
            raise RuntimeError("injected")
        return TinyModel.unet(webui.small, *args)

    monkeypatch.setattr(webui.small, "unet", unet, raising=False)
    reported.expect("injected")
    result = webui.job(ON)
    assert sizes(result) == [BASE]
    assert result.images[0].tobytes() == refined


def test_the_base_image_after_a_refiner_is_returned_if_the_job_has_no_stage(webui: Webui, refined: bytes) -> None:
    assert webui.job({"enabled": True, "scale": 1}).images[0].tobytes() == refined


class HiresPass(ScriptOfWebui):
    """Imitates hires fix: returns images of random pixels. If `nan` is set, the last pixel of each image is NaN."""

    def __init__(self, nan: bool = False):
        self.nan = nan

    def post_sample(self, p: Any, ps: Any, *args: Any) -> None:
        images = torch.rand(len(ps.samples), 3, BASE, BASE, generator=torch.Generator().manual_seed(1))
        if self.nan:
            images[..., -1, -1] = torch.nan
        ps.samples = processing.DecodedSamples(images * 2 - 1)


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos (pixels)"])
def test_the_images_of_hires_fix_are_shown_unchanged(webui: Webui, before: Callable, upscaler: str) -> None:
    before(HiresPass())
    plain = webui.job({}).images[0].tobytes()
    result = webui.job({**ON, "return_stages": True, "upscaler": upscaler})
    assert result.images[1].tobytes() == plain


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@pytest.mark.parametrize(("dtype", "advice"), [(torch.float16, "--no-half-vae"), (torch.float32, "its file may be")])
def test_nan_from_hires_fix_is_not_reported_as_an_error_of_the_encoder(
    webui: Webui,
    before: Callable,
    monkeypatch: pytest.MonkeyPatch,
    reported: Reports,
    dtype: torch.dtype,
    advice: str,
) -> None:
    """The webui does not detect this NaN, because it checks only the first value of an image."""
    reported.expect("the model or the VAE of hires fix returned NaN before the stages")
    monkeypatch.setattr(devices, "dtype_unet", dtype)
    before(HiresPass(nan=True))
    result = webui.job(ON)
    assert sizes(result) == [BASE]
    assert "encoder" not in result.comments
    assert advice in result.comments


# The webui's own settings for noise


@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
def test_the_webuis_setting_extra_noise_is_in_the_infotext_only_if_the_setting_has_an_effect(
    webui: Webui, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    """The webui's setting applies to img2img and hires fix. For the stages, DemoFusion has a field of its own."""
    upload = webui.job().images[0]
    before = webui.job(ON, sampler_name=sampler).images[0]
    monkeypatch.setattr(shared.opts, "img2img_extra_noise", 0.3)
    result = webui.job(ON, sampler_name=sampler)
    assert result.images[0].tobytes() == before.tobytes()
    assert ", Extra noise" not in result.infotexts[0]
    redrawn = webui.job({**ON, "img2img_first": True}, init_image=upload, sampler_name=sampler)
    assert ", Extra noise: 0.3" in redrawn.infotexts[0]
    assert ", Extra noise" not in webui.job(ON, init_image=upload, sampler_name=sampler).infotexts[0]


def test_the_webuis_noise_multiplier_is_in_the_infotext_only_if_the_multiplier_has_an_effect(
    webui: Webui, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = webui.job().images[0]
    monkeypatch.setattr(shared.opts, "initial_noise_multiplier", 1.1)
    assert "Noise multiplier" not in webui.job(ON, init_image=upload).infotexts[0]
    redrawn = webui.job({**ON, "img2img_first": True}, init_image=upload)
    assert "Noise multiplier: 1.1" in redrawn.infotexts[0]


# Encoding an uploaded image


@pytest.fixture
def drawing(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> Image.Image:
    """Makes the encoder add noise from torch's global generator, as a real encoder does. Returns an image to upload."""

    def encode(pictures: torch.Tensor) -> torch.Tensor:
        latent = TinyModel.encode(webui.small, pictures)
        return latent + 0.2 * torch.randn(latent.shape)

    upload = webui.job().images[0]
    monkeypatch.setattr(webui.small, "encode", encode, raising=False)
    return upload


UPLOAD = {**ON, "upscaler": "Latent", "return_stages": True}


@pytest.mark.parametrize("batch", [{}, {"batch_size": 2}, {"n_iter": 2}])
def test_the_same_upload_gives_the_same_image(webui: Webui, drawing: Image.Image, batch: dict[str, int]) -> None:
    """The image does not depend on torch's generator, which earlier jobs use, or on the number of images in the job."""
    torch.manual_seed(1)
    alone = [webui.job(UPLOAD, init_image=drawing, seed=seed) for seed in ((7, 8) if batch else (7,))]
    torch.manual_seed(2)
    result = webui.job(UPLOAD, init_image=drawing, **batch)
    expected = [job.images[place] for place in (0, 1) for job in alone]
    assert sizes(result) == [image.width for image in expected]
    for image, other in zip(result.images, expected):
        # the model may round a batch differently from a single image
        assert np.abs(np.asarray(image, int) - np.asarray(other, int)).max() <= (1 if batch else 0)


def test_encoding_an_upload_does_not_change_torchs_generator(webui: Webui, drawing: Image.Image) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    webui.job(UPLOAD, init_image=drawing)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_base_image_of_a_redrawn_upload_equals_the_image_without_demofusion(
    webui: Webui, drawing: Image.Image
) -> None:
    torch.manual_seed(4)
    plain = webui.job({}, init_image=drawing).images[0].tobytes()
    torch.manual_seed(4)
    result = webui.job({**UPLOAD, "img2img_first": True}, init_image=drawing)
    assert result.images[1].tobytes() == plain
