"""Tests the setting "Decode large images in parts" with imitations of psutil and of the webui's modules."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from autoencoders import autoencoder, picture_like
from torch import Tensor, nn

from lib_demofusion.tiled_vae.layers import decoder_layers

NAME = "lib_demofusion.host.images.vae"
GIB = 1 << 30


def decode(vae: Any, model: Any, latent: Tensor, mode: str = "automatic", report: Any = None) -> list[Tensor]:
    """Decodes the images of a latent one after the other, as the webui does."""
    with vae.in_parts(model, mode, report and vae.of_all(report, len(latent))):
        return [model.first_stage_model.decoder(row[None])[0] for row in latent]


@pytest.fixture
def vae(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Imports and returns the module under test.

    Its attribute `free` sets the free bytes of the device, of the computer's memory and of the disk.
    """
    free = SimpleNamespace(device=64 * GIB, memory=64 * GIB, disk=64 * GIB)
    stand_ins: dict[str, dict[str, Any]] = {
        "modules": {},
        "modules.devices": {"cpu": torch.device("cpu"), "torch_gc": lambda: None},
        "modules.shared": {"opts": SimpleNamespace(temp_dir=str(tmp_path))},
        "modules.paths_internal": {"data_path": str(tmp_path)},
        "psutil": {"virtual_memory": lambda: SimpleNamespace(available=free.memory)},
    }
    for name, values in stand_ins.items():
        module = ModuleType(name)
        module.__dict__.update(values)
        monkeypatch.setitem(sys.modules, name, module)
        if "." in name:
            setattr(sys.modules["modules"], name.split(".")[1], module)
    for name in (NAME, "lib_demofusion.host.common.memory"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = importlib.import_module(NAME)
    found.__dict__["real_free_bytes"] = found.free_bytes
    monkeypatch.setattr(found, "free_bytes", lambda device: free.device)
    monkeypatch.setattr(found, "disk_usage", lambda folder: SimpleNamespace(free=free.disk))
    found.__dict__["free"] = free
    yield found
    for name in (NAME, "lib_demofusion.host.common.memory"):
        sys.modules.pop(name, None)


@pytest.fixture
def model() -> Any:
    return SimpleNamespace(first_stage_model=autoencoder())


@pytest.fixture
def tried(vae: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Returns a list to which every call of decode_tiled adds its options."""
    made: list[Any] = []
    real = vae.decode_tiled

    def tiled(network: Any, z: Tensor, options: Any) -> Tensor:
        made.append(options)
        return real(network, z, options)

    monkeypatch.setattr(vae, "decode_tiled", tiled)
    return made


Z = picture_like(4, 20, 12)


def fails(error: BaseException, times: int, after: Any) -> Any:
    """Returns a function that raises `error` in its first `times` calls, and calls `after` in all later calls."""
    left = [times]

    def run(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return after(*args, **kwargs)

    return run


def test_an_image_that_fits_is_decoded_without_tiles(vae: Any, model: Any, tried: list[Any]) -> None:
    expected = model.first_stage_model.decoder(Z)[0]
    assert torch.equal(decode(vae, model, Z)[0], expected)
    vae.free.device = 0
    assert torch.equal(decode(vae, model, Z, vae.NEVER)[0], expected)
    assert not tried


def test_a_share_of_the_free_memory_stays_free(vae: Any, model: Any, tried: list[Any]) -> None:
    """Tiles are used even if the predicted memory is a little less than the free memory.

    The prediction is only an estimate, and other programs use the GPU as well.
    """
    needed = vae.whole_bytes(decoder_layers(model.first_stage_model.decoder), (Z.shape[2], Z.shape[3]), 4)
    vae.free.device = int(needed * 1.25)
    decode(vae, model, Z[:1])
    assert not tried
    for factor in (0.95, 1.0, 1.1):
        vae.free.device = int(needed * factor)
        decode(vae, model, Z[:1])
    assert len(tried) == 3


@pytest.mark.parametrize("mode", ["automatic", "always"])
def test_tiles_are_used_if_the_image_does_not_fit_or_the_setting_is_always(
    vae: Any, model: Any, tried: list[Any], mode: str
) -> None:
    if mode == "automatic":
        vae.free.device = 1
    got = decode(vae, model, Z, mode)[0]
    torch.testing.assert_close(got, model.first_stage_model.decoder(Z)[0], rtol=1e-4, atol=2e-5)
    assert [options.tile for options in tried] == [16 if mode == "automatic" else 64]


def test_a_live_preview_does_not_affect_the_job(vae: Any, model: Any, tried: list[Any]) -> None:
    """The webui decodes a live preview in another thread, while the job decodes an image in parts.

    Decoding the preview must not change the job's progress bar. Stopping the job must not stop the preview.
    """

    def stopping(share: float, images: int) -> None:
        raise InterruptedError("the job is stopped")

    expected = model.first_stage_model.decoder(Z)
    decoded: list[Tensor] = []
    with vae.in_parts(model, "always", stopping):
        thread = threading.Thread(target=lambda: decoded.append(model.first_stage_model.decoder(Z)))
        thread.start()
        thread.join()
        with pytest.raises(InterruptedError):
            model.first_stage_model.decoder(Z)
    assert torch.equal(decoded[0], expected)
    assert len(tried) == 1


def test_the_images_of_a_batch_share_the_progress_bar(vae: Any, model: Any) -> None:
    shares: list[float] = []
    decode(vae, model, torch.cat([Z] * 3), "always", shares.append)
    assert shares == sorted(shares)
    assert all(any(share == pytest.approx(n / 3) for share in shares) for n in (1, 2, 3))
    # a third of the reports belongs to the first of the three images
    assert len([share for share in shares if share <= 1 / 3 + 1e-6]) == len(shares) / 3


def test_without_tiles_progress_is_reported_twice_for_each_image(vae: Any, model: Any, tried: list[Any]) -> None:
    shares: list[float] = []
    decode(vae, model, torch.cat([Z] * 2), report=shares.append)
    assert not tried, "the images were decoded in tiles"
    assert shares == [0.25, 0.5, 0.75, 1]


def test_progress_is_also_right_if_several_images_are_decoded_together(vae: Any, model: Any) -> None:
    """reForge and Forge Neo decode several images of a batch in one call."""
    shares: list[float] = []
    with vae.in_parts(model, "automatic", vae.of_all(shares.append, 4)):
        for _ in range(2):
            model.first_stage_model.decoder(torch.cat([Z] * 2))
    assert shares == [0.25, 0.5, 0.75, 1]


def test_an_exception_in_the_report_function_ends_the_decoding(vae: Any, model: Any, tried: list[Any]) -> None:
    """An out-of-memory error leads to another attempt with smaller tiles. This exception must not."""

    def report(share: float) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        decode(vae, model, Z, "always", report)
    assert len(tried) == 1


def test_the_encoder_runs_in_tiles_too(vae: Any, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = picture_like(3, 64, 80)
    expected = model.first_stage_model.encoder(x)
    runs: list[Any] = []
    real = vae.encode_tiled
    monkeypatch.setattr(vae, "encode_tiled", lambda *args: (runs.append(args), real(*args))[1])
    with vae.in_parts(model, "always"):
        got = model.first_stage_model.encoder(x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5)
    assert len(runs) == 1


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_out_of_memory_in_the_encoder_leads_to_smaller_tiles(
    vae: Any, model: Any, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    error = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB")
    x = picture_like(3, 64, 80)
    encoder = model.first_stage_model.encoder
    expected = encoder(x)
    monkeypatch.setattr(type(encoder), "forward", fails(error, 1, None))
    made: list[int] = []
    tiled = fails(error, failures - 1, vae.encode_tiled)
    monkeypatch.setattr(vae, "encode_tiled", lambda *args: (made.append(args[2].tile), tiled(*args))[1])
    with vae.in_parts(model):
        got = encoder(x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5)
    assert made == [64, 32, 16][:failures]


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_out_of_memory_in_the_decoder_leads_to_smaller_tiles(
    vae: Any, model: Any, tried: list[Any], monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    error = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB")
    decoder = model.first_stage_model.decoder
    expected = decoder(Z)[0]
    monkeypatch.setattr(type(decoder), "forward", fails(error, 1, None))
    monkeypatch.setattr(vae, "decode_tiled", fails(error, failures - 1, vae.decode_tiled))
    got = decode(vae, model, Z)[0]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5)
    assert [options.tile for options in tried] == [(64, 32, 16)[failures - 1]]


@pytest.mark.parametrize(
    ("error", "attempts"),
    [(torch.cuda.OutOfMemoryError("CUDA out of memory."), 3), (RuntimeError("expected scalar type Half"), 1)],
)
def test_an_error_in_every_attempt_is_raised_and_the_model_is_restored(
    vae: Any, model: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, attempts: int
) -> None:
    calls: list[Any] = []

    def never(*args: Any) -> None:
        calls.append(args)
        raise error

    monkeypatch.setattr(vae, "decode_tiled", never)
    with pytest.raises(type(error), match=str(error)[:10]):
        decode(vae, model, Z, vae.ALWAYS)
    assert len(calls) == attempts
    for network in (model.first_stage_model.decoder, model.first_stage_model.encoder):
        assert "forward" not in network.__dict__


def test_feature_maps_are_stored_where_they_fit(vae: Any, model: Any) -> None:
    layers = vae.decoder_layers(model.first_stage_model.decoder)
    held = vae.held_bytes(layers, (20, 12), 4)
    enough, enough_if_packed = int(held / 0.6) + 9, int(held / 2 / 0.6) + 9

    def shelf(room: int, memory: int, disk: int, z: Tensor = Z) -> tuple[str, bool, bool]:
        vae.free.memory, vae.free.disk = memory, disk
        found = vae.choose_shelf(layers, (20, 12), z.to("meta"), room)
        return found.device.type, found.packed, found.folder is not None

    assert shelf(held, 0, 0) == ("meta", False, False)
    assert shelf(0, enough, 0) == ("cpu", False, False)
    assert shelf(0, enough_if_packed, 0) == ("cpu", True, False)
    assert shelf(0, enough_if_packed // 2, enough) == ("cpu", True, True)
    assert shelf(0, enough_if_packed, 0, Z.half()) == ("cpu", False, False)
    with pytest.raises(MemoryError, match="GiB"):
        shelf(0, enough_if_packed // 2, 0)


def test_an_image_that_fits_nowhere_is_an_error(vae: Any, model: Any, tried: list[Any]) -> None:
    vae.free.device = vae.free.memory = vae.free.disk = 0
    with pytest.raises(MemoryError, match="the VAE needs"):
        decode(vae, model, Z)
    assert not tried


def test_a_device_that_does_not_report_its_free_memory_is_assumed_to_have_little(
    vae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(device: Any) -> Any:
        raise RuntimeError("CUDA error: operation not supported")

    monkeypatch.setattr(torch.cuda, "mem_get_info", silent)
    assert vae.real_free_bytes(torch.device("cuda:0")) == vae.UNKNOWN_FREE
    vae.free.memory = 3 * GIB
    assert vae.real_free_bytes(torch.device("cpu")) == 3 * GIB


def test_the_image_is_decoded_by_another_extension_that_replaces_the_decoder(
    vae: Any, model: Any, tried: list[Any]
) -> None:
    """The extension Tiled VAE replaces the attribute `forward` of the decoder object.

    When Tiled VAE is disabled, it does not delete this attribute, but sets it to the original method.
    """
    decoder = model.first_stage_model.decoder
    decoder.original_forward = decoder.forward
    decoder.forward = hook = lambda z: torch.zeros(1, 3, 8, 8)
    assert decode(vae, model, Z, vae.ALWAYS)[0].shape == (3, 8, 8)
    assert decoder.forward is hook
    assert not tried
    decoder.forward = decoder.original_forward
    decode(vae, model, Z, vae.ALWAYS)
    assert len(tried) == 1
    assert decoder.__dict__["forward"] == decoder.original_forward


def test_autoencoders_with_an_unknown_layout_run_without_tiles(vae: Any, tried: list[Any]) -> None:
    other = nn.Sequential(nn.Conv2d(4, 3, 1))
    model = SimpleNamespace(first_stage_model=SimpleNamespace(decoder=other))
    expected = other(Z)[0]
    assert torch.equal(decode(vae, model, Z, vae.ALWAYS)[0], expected)
    with vae.in_parts(SimpleNamespace(), vae.ALWAYS):
        pass
    assert not tried
