"""Tests the work around the encoder: the memory that it gives back, and its error messages."""

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

from lib_demofusion.host import stage_loop

BALANCED = {"enabled": True, "scale": 3, "stages": "doubling", "preset": "Balanced"}


@pytest.fixture
def events(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records a job's use of the device, in order."""
    seen: list[str] = []

    def noticed(name: str, real: Any) -> Any:
        def act(*args: Any) -> Any:
            seen.append(name)
            return real(*args)

        return act

    for name in ("unet", "encode", "decode"):
        monkeypatch.setattr(webui.small, name, noticed(name, getattr(webui.small, name)), raising=False)
    monkeypatch.setattr(devices, "torch_gc", noticed("give back", devices.torch_gc))
    monkeypatch.setattr(shared.opts, "live_previews_enable", False)
    return seen


GIVE, MODEL, DECODER, ENCODER = "give back", "unet", "decode", "encode"
ONE_STAGE = [GIVE, DECODER, GIVE, ENCODER, GIVE, MODEL]


@pytest.mark.parametrize(
    ("upscaler", "expected"),
    [
        ("Lanczos (pixels)", [MODEL, *ONE_STAGE, *ONE_STAGE, GIVE, DECODER]),
        ("Lanczos", [MODEL, *ONE_STAGE, *ONE_STAGE, GIVE, DECODER]),
        ("Latent", [MODEL, GIVE, MODEL, GIVE, MODEL, GIVE, DECODER, GIVE, DECODER]),
    ],
)
def test_cached_memory_is_released_at_every_change_of_model(
    webui: Webui, events: list[str], upscaler: str, expected: list[str]
) -> None:
    """The UNet cannot reuse memory blocks of the autoencoder's sizes, nor the reverse."""
    webui.job({**BALANCED, "upscaler": upscaler})
    assert [name for name, _ in groupby(events)] == expected


@pytest.fixture
def failing_encoder(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes the encoder return one NaN, as half precision may.

    Returns the widths of the UNet's inputs since then, in cells.
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


@pytest.mark.parametrize("numbers", [torch.float16, torch.float32])
def test_nan_of_the_vae_is_reported_before_a_stage_runs(
    webui: Webui, failing_encoder: list[int], monkeypatch: pytest.MonkeyPatch, numbers: torch.dtype, reported: Reports
) -> None:
    reported.expect("the VAE's encoder returned NaN")
    monkeypatch.setattr(stage_loop.devices, "dtype_vae", torch.float32)
    real = shared.sd_model.encode_first_stage
    monkeypatch.setattr(shared.sd_model, "encode_first_stage", lambda x: real(x.float()), raising=False)
    monkeypatch.setattr(devices, "dtype_vae", numbers)
    monkeypatch.setattr(shared.sd_model, "decode_first_stage", lambda z: webui.small.decode(z.float()), raising=False)
    result = webui.job({**BALANCED, "scale": 2})
    assert failing_encoder == []
    assert result.images[0].width == BASE
    assert "stage 1 of 1 (128x128) failed, so the last finished image is returned: the VAE's encoder returned NaN" in (
        result.comments
    )
    assert ("--no-half-vae" in result.comments) == (numbers == torch.float16)
    assert "choose another VAE" in result.comments
    assert "DemoFusion error" in result.infotexts[0]


def test_no_stage_runs_if_the_vae_cannot_encode_the_upload(
    webui: Webui, failing_encoder: list[int], monkeypatch: pytest.MonkeyPatch, reported: Reports
) -> None:
    """In img2img the host encodes the upload without a check."""
    reported.expect("the VAE's encoder returned NaN")
    monkeypatch.setattr(webui.small, "decode", lambda z: torch.zeros(len(z), 3, 8 * z.shape[2], 8 * z.shape[3]))
    upload = Image.new("RGB", (BASE, BASE), (200, 90, 30))
    result = webui.job({**BALANCED, "upscaler": "Latent"}, init_image=upload)
    assert failing_encoder == []
    assert "the base image is returned: the VAE's encoder returned NaN: its file may be damaged" in result.comments


def test_no_stage_runs_if_the_base_is_nan(
    webui: Webui, events: list[str], monkeypatch: pytest.MonkeyPatch, reported: Reports
) -> None:
    """With --disable-nan-check the host passes on a base that contains NaN."""
    reported.expect("the base image is returned: the model returned NaN")

    def unet(x: Tensor, *rest: Any) -> Tensor:
        events.append(MODEL)
        out = type(webui.small).unet(webui.small, x, *rest)
        out[..., -1, -1] = torch.nan
        return out

    monkeypatch.setattr(webui.small, "unet", unet)
    monkeypatch.setattr(webui.small, "decode", lambda z: torch.zeros(len(z), 3, 8 * z.shape[2], 8 * z.shape[3]))
    result = webui.job(BALANCED)
    assert events.count("unet") == 4
    assert "the VAE" not in result.comments


ONE_NAN = (..., -1, -1)
"""The last value, because the webui checks the first one."""


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos", "Nearest (pixels)"])
def test_nan_in_the_decoded_image_of_a_stage_returns_the_one_before(
    webui: Webui, monkeypatch: pytest.MonkeyPatch, reported: Reports, upscaler: str
) -> None:
    """Half precision fails at a large size first. An upscaler would enlarge NaN as a black image."""
    reported.expect("the VAE's decoder returned NaN")
    real, spoiled = webui.small.decode, with_nan(webui.small.decode)
    monkeypatch.setattr(webui.small, "decode", lambda z: (spoiled if z.shape[-1] > BASE // 8 else real)(z))
    result = webui.job({**BALANCED, "upscaler": upscaler})
    assert result.images[0].width == BASE
    assert "DemoFusion error" in result.infotexts[0]


def with_nan(decode: Any) -> Any:
    """Returns a decoder whose images contain one NaN each."""

    def decode_to_nan(z: Tensor) -> Tensor:
        images = decode(z).clone()
        images[ONE_NAN] = torch.nan
        return images

    return decode_to_nan
