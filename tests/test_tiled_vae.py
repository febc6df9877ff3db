"""Tests the tiled autoencoder.

Its results must be the same as without tiles, and its work and its memory must stay within limits.
"""

from __future__ import annotations

import errno
import gc
import importlib
import mmap
import os
import tempfile
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from autoencoders import Decoder, Encoder, picture_like, randomised
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten

from lib_demofusion.tiled_vae import feature_maps
from lib_demofusion.tiled_vae import tiling as tiled_vae
from lib_demofusion.tiled_vae.feature_maps import Map, Shelf, grid
from lib_demofusion.tiled_vae.layers import Box, decoder_layers, encoder_layers, part_side, sizes
from lib_demofusion.tiled_vae.memory import held_bytes, part_bytes, whole_bytes
from lib_demofusion.tiled_vae.tiling import Options, decode_tiled, encode_tiled

CPU = torch.device("cpu")
SIZES = [(24, 24), (16, 40), (19, 13), (7, 33), (1, 5)]
MEAN, MOST, SEAM, WORK = 0.02, 0.2, 1.01, 1.3
"""Limits for a tiled run, compared with a run without tiles.

MEAN and MOST limit the mean and the maximum difference of the two images, in 8-bit color levels. SEAM limits the value
of `edge_gradient` with tiles, divided by the value without tiles. WORK limits the same quotient of the numbers of
multiplications.
"""


@pytest.fixture(scope="module")
def decoder() -> Any:
    return randomised(Decoder())


@pytest.fixture(scope="module")
def encoder() -> Any:
    return randomised(Encoder())


def in_255ths(full: Tensor, other: Tensor) -> Tensor:
    """Returns the absolute difference of two images in 8-bit color levels.

    Both images are first shifted, scaled and clamped in the same way, so that `full` uses most of the range -1..1.
    """
    scale = 1 / (2.2 * full.std())
    a, b = (((x - full.mean()) * scale).clamp(-1, 1) for x in (full, other))
    return (a - b).abs() * 127.5


def edge_gradient(picture: Tensor, boxes: list[Box]) -> float:
    """Returns the mean absolute gradient at the edges of the boxes, divided by that mean at all other positions."""
    at, elsewhere = [], []
    for dim, starts in ((2, {box.top for box in boxes} - {0}), (3, {box.left for box in boxes} - {0})):
        gradient = picture.diff(dim=dim).abs().transpose(2, dim)  # (B, C, across, along)
        is_edge = torch.tensor([row + 1 in starts for row in range(gradient.shape[2])])
        at.append(gradient[:, :, is_edge].flatten())
        elsewhere.append(gradient[:, :, ~is_edge].flatten())
    return (torch.cat(at).mean() / torch.cat(elsewhere).mean()).item()


def convolution_work(network: nn.Module, run: Any) -> tuple[Tensor, float]:
    """Calls `run`. Returns its result and the number of multiplications in the network's convolutions meanwhile."""
    total = 0.0

    def count(conv: Any, args: Any, out: Tensor) -> None:
        nonlocal total
        total += out.numel() * conv.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d)]
    result = run()
    for hook in hooks:
        hook.remove()
    return result, total


@pytest.mark.parametrize("tile", [4, 9])
@pytest.mark.parametrize("size", SIZES)
def test_decoding_in_tiles_gives_the_same_image(decoder: Any, size: tuple[int, int], tile: int) -> None:
    z = picture_like(4, *size)
    torch.testing.assert_close(decode_tiled(decoder, z, Options(tile)), decoder(z), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("tile", [2, 5])
@pytest.mark.parametrize("size", [(64, 96), (80, 40), (67, 95), (42, 61)])
def test_encoding_in_tiles_gives_the_same_latent(encoder: Any, size: tuple[int, int], tile: int) -> None:
    x = picture_like(3, *size) / 3
    torch.testing.assert_close(encode_tiled(encoder, x, Options(tile)), encoder(x), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("mult", [(1,), (1, 1), (2, 1, 1), (1, 2, 2, 4, 4)])
def test_autoencoders_with_other_depths_and_widths_give_the_same_result_in_tiles(mult: tuple[int, ...]) -> None:
    decoder, encoder, cells = randomised(Decoder(mult=mult)), randomised(Encoder(mult=mult)), 2 ** (len(mult) - 1)
    z, x = picture_like(4, 9, 14), picture_like(3, 9 * cells, 14 * cells)
    torch.testing.assert_close(decode_tiled(decoder, z, Options(4)), decoder(z), rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(encode_tiled(encoder, x, Options(4)), encoder(x), rtol=1e-4, atol=2e-5)


def test_decoding_in_tiles_gives_the_same_image_if_an_up_block_has_attention() -> None:
    decoder = randomised(Decoder(mult=(1, 2), attends=True))
    z = picture_like(4, 12, 10)
    torch.testing.assert_close(decode_tiled(decoder, z, Options(4)), decoder(z), rtol=1e-4, atol=2e-5)


def test_each_image_of_a_batch_is_normalized_with_its_own_statistics(decoder: Any) -> None:
    z = torch.cat([picture_like(4, 12, 16, seed) * (1 + 3 * seed) for seed in range(3)])
    torch.testing.assert_close(decode_tiled(decoder, z, Options(5)), decoder(z), rtol=1e-4, atol=2e-5)


def test_decoding_in_tiles_gives_the_same_image_if_the_decoder_ends_in_tanh(decoder: Any) -> None:
    z = picture_like(4, 8, 8)
    decoder.tanh_out = True
    try:
        torch.testing.assert_close(decode_tiled(decoder, z, Options(5)), decoder(z).tanh(), rtol=1e-4, atol=2e-5)
    finally:
        del decoder.tanh_out


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("in_file", [False, True])
def test_errors_seams_and_work_stay_within_their_limits(
    decoder: Any, tmp_path: Path, packed: bool, in_file: bool
) -> None:
    """The limits apply to all kinds of storage. The tile has the smallest size that the extension uses, 16 cells."""
    z, tile = picture_like(4, 56, 40), 16
    shelf = Shelf(CPU, packed, tmp_path if in_file else None)
    full, once = convolution_work(decoder, lambda: decoder(z))
    got, work = convolution_work(decoder, lambda: decode_tiled(decoder, z, Options(tile, shelf)))
    difference = in_255ths(full, got)
    assert difference.mean() < MEAN
    assert difference.max() < MOST
    steps = decoder_layers(decoder)
    limits = sizes(steps, (56, 40))
    boxes = grid(limits[-1], part_side(steps, limits, len(steps) - 1, tile))
    assert len(boxes) > 1
    assert edge_gradient(got, boxes) / edge_gradient(full, boxes) < SEAM
    assert work / once < WORK
    assert not list(tmp_path.iterdir())


def test_errors_and_work_of_the_encoder_stay_within_their_limits(encoder: Any) -> None:
    x = picture_like(3, 320, 448)
    full, once = convolution_work(encoder, lambda: encoder(x))
    got, work = convolution_work(encoder, lambda: encode_tiled(encoder, x, Options(16, Shelf(CPU, packed=True))))
    assert work / once < WORK
    assert ((got - full).abs().max() / full.std()) < 0.01


def test_in_bfloat16_a_tiled_run_is_about_as_exact_as_a_run_without_tiles(decoder: Any) -> None:
    z = picture_like(4, 16, 20)
    exact = decoder(z)
    half = randomised(Decoder()).bfloat16()
    whole, tiled = half(z.bfloat16()), decode_tiled(half, z.bfloat16(), Options(6))
    assert tiled.dtype == torch.bfloat16
    assert (tiled - exact).abs().mean() < 1.1 * (whole - exact).abs().mean()


class WindowsMmap:
    """Imitates the mmap module of Windows, where creating a map extends the file without writing to it."""

    def mmap(self, descriptor: int, length: int) -> mmap.mmap:
        if os.fstat(descriptor).st_size < length:
            os.ftruncate(descriptor, length)
        return mmap.mmap(descriptor, length)


class FileWithoutTruncate:
    """Imitates a temporary file whose `truncate` must not be called: on Windows, it writes every new byte."""

    def __init__(self, file: Any):
        self._file = file

    def __enter__(self) -> FileWithoutTruncate:
        return self

    def __exit__(self, *problem: object) -> None:
        self._file.close()

    def fileno(self) -> int:
        return self._file.fileno()

    def truncate(self, length: int) -> None:
        pytest.fail(f"truncate would write {length} bytes of zeros")


def test_on_windows_only_mmap_extends_a_file(decoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    z = picture_like(4, 20, 24)
    expected = decode_tiled(decoder, z, Options(5, Shelf(CPU, True, tmp_path)))
    monkeypatch.setattr(feature_maps, "MMAP_RESERVES", True)
    monkeypatch.setattr(Shelf, "_reserve", lambda *_: pytest.fail("the file is extended before mmap extends it"))
    monkeypatch.setattr(feature_maps, "mmap", WindowsMmap())
    real = tempfile.TemporaryFile
    monkeypatch.setattr(feature_maps.tempfile, "TemporaryFile", lambda dir: FileWithoutTruncate(real(dir=dir)))
    assert torch.equal(decode_tiled(decoder, z, Options(5, Shelf(CPU, True, tmp_path))), expected)


@pytest.mark.skipif(os.name != "posix", reason="this system does not report the blocks of a file (st_blocks)")
@pytest.mark.parametrize("supported", [True, False])
def test_disk_space_is_reserved_for_a_file_before_the_file_is_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supported: bool
) -> None:
    """Without reserved space, writing to the mapped file would end the process if the disk is full."""
    if not supported:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    blocks: list[int] = []
    real = mmap.mmap

    def watched(descriptor: int, length: int) -> mmap.mmap:
        blocks.append(os.fstat(descriptor).st_blocks)
        return real(descriptor, length)

    monkeypatch.setattr(feature_maps.mmap, "mmap", watched)
    held = Shelf(CPU, folder=tmp_path).empty((1, 64, 512, 300), torch.int16)
    assert blocks[0] * 512 >= held.numel() * 2
    assert not held.any()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system has no posix_fallocate")
def test_a_full_disk_is_an_error_that_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, start: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"has no space for 0\.5 GiB of temporary files of the VAE") as caught:
        Shelf(CPU, folder=tmp_path).empty((1, 64, 2048, 2048), torch.int16)
    assert caught.value.errno == errno.ENOSPC
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("shelf", "text"),
    [
        (Shelf(torch.device("cuda")), "the GPU's memory"),
        (Shelf(CPU), "the computer's memory"),
        (Shelf(CPU, packed=True), "the computer's memory, packed"),
        (Shelf(CPU, packed=True, folder=Path("temporary")), "a file, packed"),
    ],
)
def test_log_messages_name_where_feature_maps_are_stored(shelf: Shelf, text: str) -> None:
    assert f"{shelf}" == text


@dataclass(frozen=True)
class CountedShelf(Shelf):
    """Stores feature maps like a Shelf, and counts their bytes.

    `now` contains the number of bytes of each map that exists. `peaks` contains the total after each new map.
    """

    now: dict[int, int] = field(default_factory=dict)
    peaks: list[int] = field(default_factory=list)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        with _disable_current_modes():
            found = super().empty(shape, dtype)
        key = found.untyped_storage().data_ptr()
        self.now[key] = found.nbytes
        self.peaks.append(sum(self.now.values()))
        weakref.finalize(found, self.now.pop, key)
        return found


class LiveBytes(TorchDispatchMode):
    """Measures the largest number of bytes that tensors use at the same time. Maps of `shelf` do not count."""

    def __init__(self, shelf: CountedShelf):
        super().__init__()
        self.shelf, self.peak, self._live = shelf, 0, dict[int, list[int]]()

    def _drop(self, key: int) -> None:
        self._live[key][1] -= 1
        if not self._live[key][1]:
            del self._live[key]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.shelf.now:
                key = tensor.untyped_storage().data_ptr()
                self._live.setdefault(key, [tensor.untyped_storage().nbytes(), 0])[1] += 1
                weakref.finalize(tensor, self._drop, key)
        self.peak = max(self.peak, sum(size for size, _ in self._live.values()))
        return out


@pytest.mark.parametrize("packed", [False, True])
def test_the_memory_of_feature_maps_is_predicted(decoder: Any, encoder: Any, packed: bool) -> None:
    for network, run, layout, x in (
        (decoder, decode_tiled, decoder_layers, picture_like(4, 20, 24)),
        (encoder, encode_tiled, encoder_layers, picture_like(3, 160, 192)),
    ):
        shelf = CountedShelf(CPU, packed)
        run(network, x, Options(8, shelf))
        predicted = held_bytes(layout(network), (x.shape[2], x.shape[3]), 2 if packed else 4)
        # the shelf does not count the input and the result, but they are small here
        assert max(shelf.peaks) == pytest.approx(predicted, rel=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_memory_apart_from_feature_maps_is_predicted(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled_vae, "MATRIX_ELEMENTS", 1 << 16)
    decoder = randomised(Decoder()).to(dtype)
    z, shelf = picture_like(4, 40, 32).to(dtype), CountedShelf(CPU)
    steps = decoder_layers(decoder)
    for tile in (8, 16):
        with torch.no_grad(), LiveBytes(shelf) as counted:
            decode_tiled(decoder, z, Options(tile, shelf))
        result = 3 * 64 * z.shape[2] * z.shape[3] * z.element_size()
        predicted = part_bytes(steps, (40, 32), z.element_size(), tile)
        assert 0.4 * predicted < counted.peak < 1.05 * predicted + result


def test_the_memory_of_a_run_without_tiles_is_predicted(decoder: Any) -> None:
    z, shelf = picture_like(4, 20, 24), CountedShelf(CPU)
    with torch.no_grad(), LiveBytes(shelf) as counted:
        decoder(z)
    predicted = whole_bytes(decoder_layers(decoder), (20, 24), 4)
    assert 0.5 * predicted < counted.peak < 1.05 * predicted


def test_no_feature_map_or_hook_remains_after_a_tiled_run(decoder: Any) -> None:
    before = dict(decoder.__dict__), len(decoder._forward_hooks)
    shelf = CountedShelf(CPU)
    decode_tiled(decoder, picture_like(4, 12, 12), Options(4, shelf))
    gc.collect()
    assert not shelf.now
    assert (dict(decoder.__dict__), len(decoder._forward_hooks)) == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_value_that_is_not_finite_makes_the_whole_image_nan(decoder: Any, encoder: Any, bad: float) -> None:
    """The webui checks only one value of an image for NaN (devices.test_for_nans), so all values must be NaN."""
    z, x = picture_like(4, 16, 16), picture_like(3, 64, 64)
    z[0, 0, 9, 9] = x[0, 0, 40, 40] = bad
    assert decode_tiled(decoder, z, Options(5)).isnan().all()
    assert encode_tiled(encoder, x, Options(3)).isnan().all()


def test_a_flat_image_is_decoded_correctly(decoder: Any) -> None:
    z = torch.zeros(1, 4, 12, 12)
    for packed in (False, True):
        got = decode_tiled(decoder, z, Options(5, Shelf(CPU, packed)))
        torch.testing.assert_close(got, decoder(z), rtol=1e-3, atol=1e-3)


def test_progress_is_reported_and_an_exception_in_the_report_function_stops_the_run(decoder: Any) -> None:
    shares: list[float] = []
    z = torch.cat([picture_like(4, 12, 12)] * 2)
    decode_tiled(decoder, z, Options(4, report=shares.append))
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.05
    assert shares[-1] == pytest.approx(1)

    class StopError(Exception):
        pass

    def report(share: float) -> None:
        shares.append(share)
        if len(shares) > 5:
            raise StopError

    shares.clear()
    with pytest.raises(StopError):
        decode_tiled(decoder, z, Options(4, report=report))
    assert len(shares) == 6


def test_attention_in_chunks_gives_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (torch.randn(1, 1, n, 8) for n in (300, 500, 500))
    whole = tiled_vae.attend(q, k, v)
    torch.testing.assert_close(whole, torch.softmax(q @ k.transpose(2, 3) / 8**0.5, 3) @ v)
    real, chunks = torch.nn.functional.scaled_dot_product_attention, []

    def small(some: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        chunks.append(some.shape[2])
        if some.shape[2] > 100:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return real(some, keys, values)

    monkeypatch.setattr(tiled_vae.F, "scaled_dot_product_attention", small)
    torch.testing.assert_close(tiled_vae.attend(q, k, v), whole)
    assert chunks == [300, 150, 75, 75, 75, 75]
    monkeypatch.setattr(tiled_vae, "MATRIX_ELEMENTS", 500 * 60)
    chunks.clear()
    torch.testing.assert_close(tiled_vae.attend(q, k, v), whole)
    assert chunks == [60] * 5


def test_the_error_of_a_packed_feature_map_is_at_most_a_65535th_of_its_range() -> None:
    x = picture_like(6, 37, 29)
    held = Map(Shelf(CPU, packed=True), 6, (37, 29), 10, torch.float32)
    for box in held.boxes:
        held.write(box, box.cut(x))
    for box in (Box(0, 0, 37, 29), Box(9, 10, 11, 19), Box(36, 28, 37, 29)):
        got = held.read(box, CPU)
        assert (got - box.cut(x)).abs().max() <= (x.max() - x.min()) / 65535


@pytest.mark.parametrize(
    "change",
    [
        lambda d: delattr(d, "conv_in"),
        lambda d: setattr(d, "give_pre_end", True),
        lambda d: setattr(d.conv_out, "padding_mode", "circular"),
        lambda d: setattr(d.mid.block_1, "conv_shortcut", nn.Identity()),
        lambda d: delattr(d.mid.attn_1, "q"),
        lambda d: setattr(d, "norm_out", nn.InstanceNorm2d(8)),
        lambda d: delattr(d.up[1].upsample, "conv"),
    ],
)
def test_decoders_with_an_unknown_layout_are_refused(change: Any) -> None:
    decoder = randomised(Decoder())
    change(decoder)
    with pytest.raises(ValueError, match=r"^a "):
        decoder_layers(decoder)


@pytest.mark.webui
@pytest.mark.parametrize("package", ["stable-diffusion-stability-ai:ldm", "generative-models:sgm"])
def test_the_autoencoder_classes_of_the_webui_give_the_same_result(
    request: pytest.FixtureRequest, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is skipped if packages that the webui's classes import are missing. The webui's own environment contains them."""
    webui = request.config.getoption("--webui")
    if not webui:
        pytest.skip("no webui: use --webui DIR or set SD_WEBUI_DIR")
    folder, name = package.split(":")
    monkeypatch.syspath_prepend(str(Path(webui) / "repositories" / folder))
    try:
        model = importlib.import_module(f"{name}.modules.diffusionmodules.model")
    except ImportError as missing:
        pytest.skip(str(missing))
    config = {"ch": 32, "out_ch": 3, "ch_mult": (1, 2, 4, 4), "num_res_blocks": 2, "attn_resolutions": []}
    config |= {"in_channels": 3, "resolution": 64, "z_channels": 4, "double_z": True}
    decoder, encoder = randomised(model.Decoder(**config)), randomised(model.Encoder(**config))
    z, x = picture_like(4, 17, 22), picture_like(3, 136, 176)
    torch.testing.assert_close(decode_tiled(decoder, z, Options(8)), decoder(z), rtol=1e-4, atol=5e-5)
    torch.testing.assert_close(encode_tiled(encoder, x, Options(8)), encoder(x), rtol=1e-4, atol=5e-5)
