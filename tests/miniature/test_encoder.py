"""Tests that a job releases cached memory between UNet, decoder and encoder, and reports NaN from each of them."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest
import torch
from in_process import BASE, Webui
from modules import devices, shared
from PIL import Image
from reports import Reports
from torch import Tensor

BALANCED = {"enabled": True, "scale": 3, "stages": "doubling", "preset": "Balanced"}


@pytest.fixture
def events(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records the calls of the UNet, the encoder and the decoder, and the releases of cached memory, in order."""
    seen: list[str] = []

    def recorded(name: str, real: Any) -> Any:
        def act(*args: Any) -> Any:
            seen.append(name)
            return real(*args)

        return act

    for name in ("unet", "encode", "decode"):
        monkeypatch.setattr(webui.small, name, recorded(name, getattr(webui.small, name)), raising=False)
    monkeypatch.setattr(devices, "torch_gc", recorded("release", devices.torch_gc))
    monkeypatch.setattr(shared.opts, "live_previews_enable", False)
    return seen


RELEASE, MODEL, DECODER, ENCODER = "release", "unet", "decode", "encode"
"""The names of the events in `events`."""
ONE_STAGE = [RELEASE, DECODER, RELEASE, ENCODER, RELEASE, MODEL]
"""The events of a stage that decodes the previous image, enlarges it, and encodes it."""


@pytest.mark.parametrize(
    ("upscaler", "expected"),
    [
        ("Lanczos (pixels)", [MODEL, *ONE_STAGE, *ONE_STAGE, RELEASE, DECODER]),
        ("Lanczos", [MODEL, *ONE_STAGE, *ONE_STAGE, RELEASE, DECODER]),
        ("Latent", [MODEL, RELEASE, MODEL, RELEASE, MODEL, RELEASE, DECODER, RELEASE, DECODER]),
    ],
)
def test_cached_memory_is_released_between_two_networks(
    webui: Webui, events: list[str], upscaler: str, expected: list[str]
) -> None:
    """The free blocks in torch's cache have the sizes that one network needed, and rarely fit another network."""
    webui.job({**BALANCED, "upscaler": upscaler})
    assert [name for name, _ in groupby(events)] == expected


@pytest.fixture
def failing_encoder(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes the encoder return a latent whose last cell is NaN. NaN can occur in half precision.

    Returns a list with the width in cells of every input of the UNet. Each call of the encoder clears the list.
    """
    widths: list[int] = []
    real = webui.small.encode

    def encode(images: Tensor) -> Tensor:
        widths.clear()
        latent = real(images)
        latent[..., -1, -1] = torch.nan
        return latent

    def unet(x: Tensor, *rest: Any) -> Tensor:
        widths.append(x.shape[-1])
        return type(webui.small).unet(webui.small, x, *rest)

    monkeypatch.setattr(webui.small, "encode", encode, raising=False)
    monkeypatch.setattr(webui.small, "unet", unet, raising=False)
    return widths


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_nan_from_the_encoder_is_reported_before_the_stage_runs(
    webui: Webui, failing_encoder: list[int], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, reported: Reports
) -> None:
    reported.expect("the VAE's encoder returned NaN")
    real = shared.sd_model.encode_first_stage
    monkeypatch.setattr(shared.sd_model, "encode_first_stage", lambda x: real(x.float()), raising=False)
    monkeypatch.setattr(devices, "dtype_vae", dtype)
    monkeypatch.setattr(shared.sd_model, "decode_first_stage", lambda z: webui.small.decode(z.float()), raising=False)
    result = webui.job({**BALANCED, "scale": 2})
    assert failing_encoder == []
    assert result.images[0].width == BASE
    assert "stage 1 of 1 (128x128) failed, so the last finished image is returned: the VAE's encoder returned NaN" in (
        result.comments
    )
    assert ("--no-half-vae" in result.comments) == (dtype == torch.float16)
    assert "choose another VAE" in result.comments
    assert "DemoFusion error" in result.infotexts[0]


def test_no_stage_runs_if_the_encoder_returns_nan_for_the_upload(
    webui: Webui, failing_encoder: list[int], monkeypatch: pytest.MonkeyPatch, reported: Reports
) -> None:
    """In img2img, the webui encodes the uploaded image, and does not check the latent for NaN."""
    reported.expect("the VAE's encoder returned NaN")
    monkeypatch.setattr(webui.small, "decode", lambda z: torch.zeros(len(z), 3, 8 * z.shape[2], 8 * z.shape[3]))
    upload = Image.new("RGB", (BASE, BASE), (200, 90, 30))
    result = webui.job({**BALANCED, "upscaler": "Latent"}, init_image=upload)
    assert failing_encoder == []
    assert "the base image is returned: the VAE's encoder returned NaN: its file may be damaged" in result.comments


def test_no_stage_runs_if_the_base_latent_contains_nan(
    webui: Webui, events: list[str], monkeypatch: pytest.MonkeyPatch, reported: Reports
) -> None:
    """The webui checks only the first value for NaN, so it continues a job in which only the last cell is NaN."""
    reported.expect("the base image is returned: the model returned NaN")

    def unet(x: Tensor, *rest: Any) -> Tensor:
        events.append(MODEL)
        out = type(webui.small).unet(webui.small, x, *rest)
        out[..., -1, -1] = torch.nan
        return out

    monkeypatch.setattr(webui.small, "unet", unet)
    monkeypatch.setattr(webui.small, "decode", lambda z: torch.zeros(len(z), 3, 8 * z.shape[2], 8 * z.shape[3]))
    result = webui.job(BALANCED)
    # the four steps of the base pass
    assert events.count("unet") == 4
    assert "the VAE" not in result.comments


LAST_PIXEL = (..., -1, -1)
"""The index of the last pixel of every image. The webui checks only the first value of an image for NaN."""


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos", "Nearest (pixels)"])
def test_if_the_images_of_all_stages_contain_nan_the_base_image_is_returned(
    webui: Webui, monkeypatch: pytest.MonkeyPatch, reported: Reports, upscaler: str
) -> None:
    """Every image larger than the base image contains NaN, as can happen in half precision.

    Without DemoFusion's check, upscalers would turn NaN into black.
    """
    reported.expect("the VAE's decoder returned NaN")
    real, spoiled = webui.small.decode, with_nan(webui.small.decode)
    monkeypatch.setattr(webui.small, "decode", lambda z: (spoiled if z.shape[-1] > BASE // 8 else real)(z))
    result = webui.job({**BALANCED, "upscaler": upscaler})
    assert result.images[0].width == BASE
    assert "DemoFusion error" in result.infotexts[0]


def with_nan(decode: Any) -> Any:
    """Returns a decoder that sets the last pixel of each image to NaN."""

    def decode_to_nan(z: Tensor) -> Tensor:
        images = decode(z).clone()
        images[LAST_PIXEL] = torch.nan
        return images

    return decode_to_nan
