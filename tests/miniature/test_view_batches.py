"""Tests the number of views per model call.

The batches of views leave enough memory for the live preview. A UNet that replaces the checkpoint's UNet evaluates one
view per call.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from autoencoders import autoencoder
from in_process import BASE, Webui
from modules import devices, sd_samplers_common, sd_unet, shared
from torch import Tensor

from bench.peak_bytes import PeakBytes
from lib_demofusion.host.sampling import stage_setup
from lib_demofusion.method import filters
from lib_demofusion.method.batching import UnknownMemory


@pytest.fixture
def rows(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list to which each call of the UNet adds its number of batch rows."""
    counted: list[int] = []
    real = webui.small.unet

    def noticed(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        counted.append(len(x))
        return real(x, t, context)

    monkeypatch.setattr(webui.small, "unet", noticed, raising=False)
    return counted


@pytest.mark.parametrize("source", ["request", "settings", "automatic"])
def test_a_replaced_unet_gets_one_view_at_a_time(
    webui: Webui, rows: list[int], monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """For example, TensorRT compiles a UNet for one batch size. The compiled UNet fails with a larger batch.

    `source` is the place of the view batch 4: the request or the settings page. "automatic" means that none is set.
    """
    monkeypatch.setattr(shared.opts, stage_setup.options.VIEW_BATCH, 4 if source == "settings" else 0, raising=False)
    monkeypatch.setattr(stage_setup, "device_memory", lambda *left: Plenty())
    settings = {"enabled": True, "scale": 2, "view_batch": 4 if source == "request" else 0}
    webui.job(settings)
    # at least four views, each with a cond and an uncond
    assert max(rows) >= 8
    rows.clear()
    monkeypatch.setattr(sd_unet, "current_unet", SimpleNamespace())
    result = webui.job(settings)
    assert set(rows) == {2}
    assert result.images[0].width == 2 * BASE


class Plenty(UnknownMemory):
    """Imitates a device that has enough memory for several views per call: 80 bytes are free, and a call needs 8."""

    def free(self) -> int:
        return 80

    def peak(self) -> int:
        return 8


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns a model with an autoencoder of the usual layout.

    Sets the webui's options to the values of a computer with a GPU that shows a live preview every 10 steps. With the
    method "Full", the webui decodes previews with this autoencoder.
    """
    monkeypatch.setattr(sd_samplers_common, "approximation_indexes", {"Full": 0, "Approx NN": 1, "TAESD": 3})
    for name, value in (("live_previews_enable", True), ("show_progress_every_n_steps", 10)):
        monkeypatch.setattr(shared.opts, name, value, raising=False)
    monkeypatch.setattr(shared.opts, "show_progress_type", "Full", raising=False)
    monkeypatch.setattr(shared, "parallel_processing_allowed", True, raising=False)
    return SimpleNamespace(first_stage_model=autoencoder())


@pytest.mark.parametrize("size", [(24, 16), (32, 32), (20, 60)])
def test_enough_memory_is_reserved_for_a_preview_with_the_method_full(
    model: Any, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    """Compares the reserved bytes with the measured peak of the decoder for a latent of the preview's size.

    The reserved memory must be enough, but at most twice as much as necessary. `size` is the
    size of the stage's latent in cells.
    """
    monkeypatch.setattr(filters, "PREVIEW_CELLS", 32)
    latent = filters.for_preview(torch.zeros(1, 4, *size))
    assert max(latent.shape[-2:]) == min(max(size), 32)
    with torch.no_grad(), PeakBytes() as bytes_:
        model.first_stage_model.decoder(latent)
    left = stage_setup.preview_bytes(model, size)
    assert bytes_.peak <= left <= 2 * bytes_.peak


def test_the_memory_reserved_for_a_preview_depends_on_the_dtype_of_the_vae(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = stage_setup.preview_bytes(model, (24, 16))
    monkeypatch.setattr(devices, "dtype_vae", torch.float16)
    assert stage_setup.preview_bytes(model, (24, 16)) == single / 2


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (shared.opts, "live_previews_enable", False),
        (shared.opts, "show_progress_every_n_steps", -1),
        (shared.opts, "show_progress_type", "Approx NN"),
        (shared.opts, "show_progress_type", "TAESD"),
        (shared, "parallel_processing_allowed", False),
    ],
)
def test_no_memory_is_reserved_if_the_vae_decodes_no_previews_during_sampling(
    model: Any, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, value: object
) -> None:
    assert stage_setup.preview_bytes(model, (24, 16)) > 0
    monkeypatch.setattr(owner, name, value, raising=False)
    assert stage_setup.preview_bytes(model, (24, 16)) == 0


def test_no_memory_is_reserved_for_an_autoencoder_with_an_unknown_layout(model: Any) -> None:
    del model.first_stage_model.decoder.mid
    assert stage_setup.preview_bytes(model, (24, 16)) == 0
    assert stage_setup.preview_bytes(SimpleNamespace(), (24, 16)) == 0


def test_every_stage_reserves_memory_for_its_preview(webui: Webui, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(stage_setup, "device_memory", lambda reserve: (left.append(reserve), UnknownMemory())[1])
    monkeypatch.setattr(shared.sd_model, "first_stage_model", model.first_stage_model, raising=False)
    webui.job({"enabled": True, "scale": 3, "stages": "every"})
    assert left == [stage_setup.preview_bytes(model, (n * BASE // 8, n * BASE // 8)) for n in (2, 3)]
    assert left[0] < left[1]
