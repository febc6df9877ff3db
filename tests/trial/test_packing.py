"""Tests that a packed checkpoint is half as large and restores nearly the same weights."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from trial import packing

DECODER_KERNEL = "first_stage_model.decoder.conv.weight"


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    scales = torch.logspace(-3, 1, 64)
    return {
        packing.WORDS: torch.randn(1000, 32).half(),
        "model.conv.weight": (torch.randn(64, 32, 3, 3) * scales[:, None, None, None]).half(),
        "model.conv.bias": torch.randn(64).half(),
        DECODER_KERNEL: (torch.randn(16, 8, 3, 3) * scales[:8, None, None] * scales[48:, None, None, None]).half(),
        "model.small.weight": torch.randn(4, 4, 1, 1).half(),
        "alphas_cumprod": torch.linspace(0.0047, 0.9991, 1000),
    }


def test_unpacked_weights_are_exact_to_half_a_step_of_their_row(tensors, tmp_path):
    used = torch.tensor([3, 500, 999])
    packing.save(tmp_path / "a.safetensors", tensors, used)
    full = packing.load(tmp_path / "a.safetensors")
    assert full.keys() == tensors.keys()
    name = "model.conv.weight"
    largest = tensors[name].float().flatten(1).abs().amax(1)
    error = (full[name].float() - tensors[name].float()).flatten(1).abs().amax(1)
    assert (error <= largest * (0.5 / 127 + 2**-11) + 1e-6).all()
    # the decoder's kernels have one scale per output and input
    largest = tensors[DECODER_KERNEL].float().abs().amax((2, 3))
    error = (full[DECODER_KERNEL].float() - tensors[DECODER_KERNEL].float()).abs().amax((2, 3))
    assert (error <= largest * (0.5 / 127 + 2**-10) + 1e-6).all()
    for exact in ("model.conv.bias", "model.small.weight", "alphas_cumprod"):
        torch.testing.assert_close(full[exact], tensors[exact], rtol=0, atol=0)
    torch.testing.assert_close(full[packing.WORDS][used], tensors[packing.WORDS][used], rtol=0.01, atol=0.02)


def test_untrained_words_are_the_same_at_every_load(tensors, tmp_path):
    packing.save(tmp_path / "a.safetensors", tensors, torch.tensor([1]))
    first, second = (packing.load(tmp_path / "a.safetensors")[packing.WORDS] for _ in range(2))
    assert first.shape == (1000, 32)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert 0.01 < first[2:].float().std() < 0.03


def test_packed_is_half_as_large(tensors, tmp_path):
    packing.save(tmp_path / "packed.safetensors", tensors, torch.tensor([1]))
    save_file(tensors, str(tmp_path / "full.safetensors"))
    assert (tmp_path / "packed.safetensors").stat().st_size < 0.55 * (tmp_path / "full.safetensors").stat().st_size


def test_an_unpacked_checkpoint_is_loaded_unchanged(tensors, tmp_path):
    save_file(tensors, str(tmp_path / "full.safetensors"))
    for name, tensor in packing.load(tmp_path / "full.safetensors").items():
        torch.testing.assert_close(tensor, tensors[name], rtol=0, atol=0)


@pytest.mark.parametrize("packed", [True, False])
def test_a_webui_gets_full_weights(tensors, tmp_path, packed):
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    packing.save(source, tensors, torch.tensor([1])) if packed else save_file(tensors, str(source))
    packing.write_full(source, target)
    assert packing.packed_words(target) is None
    expected = packing.load(source)
    for name, tensor in load_file(str(target)).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


def test_unpacked_rows_are_as_exact_as_eight_bits_allow() -> None:
    weights = {
        "kernel": torch.randn(16, 8, 3, 3) * torch.logspace(-3, 1, 16).reshape(16, 1, 1, 1),
        "small": torch.randn(4, 4),
        "bias": torch.randn(2000),
        "steps": torch.arange(600),
    }
    packed = packing.pack_rows(weights)
    assert {name: tensor.dtype for name, tensor in packed.items()} == {
        "kernel": torch.int8,
        "kernel" + packing.SCALE: torch.float32,
        "small": torch.float16,
        "bias": torch.float16,
        "steps": torch.int64,
    }
    back = packing.unpack_rows(packed)
    assert back.keys() == weights.keys()
    # half a step, where a step is 1 / 127 of the largest value of each row
    largest = weights["kernel"].abs().flatten(1).amax(1)
    error = (back["kernel"] - weights["kernel"]).abs().flatten(1).amax(1)
    assert (error <= largest / 254 * 1.001).all()
    torch.testing.assert_close(back["small"].float(), weights["small"], atol=2e-3, rtol=1e-3)
    assert torch.equal(back["steps"], weights["steps"])
