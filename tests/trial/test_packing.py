"""Tests that unpacked weights are close to the original weights, and that `add_lora` adds the right changes.

A packed checkpoint stores its large weights as int8 with scales.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from trial import packing, small_model

Tensors = dict[str, torch.Tensor]
KERNEL, DECODER_KERNEL = "model.conv.weight", "first_stage_model.decoder.conv.weight"
VOCABULARY = 1000


@pytest.fixture
def tensors() -> Tensors:
    """Creates the tensors of a checkpoint. The channels of a kernel have scales that differ by orders of magnitude."""
    torch.manual_seed(1)
    scales = torch.logspace(-3, 1, 64)
    return {
        packing.TOKEN_EMBEDDING: torch.randn(VOCABULARY, 32).half(),
        KERNEL: (torch.randn(64, 32, 3, 3) * scales[:, None, None, None]).half(),
        DECODER_KERNEL: (torch.randn(16, 8, 3, 3) * scales[:8, None, None] * scales[48:, None, None, None]).half(),
        "model.conv.bias": torch.randn(64).half(),
        "alphas_cumprod": torch.linspace(0.0047, 0.9991, 1000),
        "position_ids": torch.arange(77),
    }


def quantized(weight: torch.Tensor, axes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantizes a weight to int8 as in the bundled files. Returns the weight and its scales.

    The shape of the scales consists of the first `axes` sizes of the weight. For example, a kernel (16, 8, 3, 3) has 16
    scales if `axes` is 1, and 16 x 8 scales if `axes` is 2.
    """
    rest = weight.float().flatten(axes)
    scale = (rest.abs().amax(-1).clamp(min=1e-5) / 127).to(torch.float32 if axes == 1 else torch.float16)
    return (rest / scale[..., None].float()).round().clamp(-127, 127).to(torch.int8).reshape(weight.shape), scale


def save_packed(path: Path, tensors: Tensors, used: torch.Tensor) -> None:
    """Writes a packed checkpoint, which contains only the rows `used` of the token embedding."""
    packed = {**tensors, packing.TRAINED_ROWS: used.to(torch.int32)}
    for name, axes in ((packing.TOKEN_EMBEDDING, 1), (KERNEL, 1), (DECODER_KERNEL, 2)):
        weight = tensors[name][used] if name == packing.TOKEN_EMBEDDING else tensors[name]
        packed[name], packed[name + packing.SCALE] = quantized(weight, axes)
    save_file(packed, str(path), metadata={"format": "pt", "packed": "demofusion-int8", "words": str(VOCABULARY)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_unpacked_weights_differ_by_at_most_half_a_quantization_step(
    tensors: Tensors, tmp_path: Path, dtype: torch.dtype
) -> None:
    used = torch.tensor([3, 500, 999])
    save_packed(tmp_path / "a.safetensors", tensors, used)
    full = packing.load(tmp_path / "a.safetensors", dtype)
    assert full.keys() == tensors.keys()
    expected = {**tensors, packing.TOKEN_EMBEDDING: tensors[packing.TOKEN_EMBEDDING][used]}
    found = {**full, packing.TOKEN_EMBEDDING: full[packing.TOKEN_EMBEDDING][used]}
    for name, axes in ((packing.TOKEN_EMBEDDING, 1), (KERNEL, 1), (DECODER_KERNEL, 2)):
        assert found[name].dtype == dtype
        exact = expected[name].float().flatten(axes)
        error = (found[name].float().flatten(axes) - exact).abs().amax(-1)
        # a step is 1 / 127 of the largest weight with this scale; 2**-10 allows for rounding to half precision
        assert (error <= exact.abs().amax(-1) * (0.5 / 127 + 2**-10) + 1e-6).all()
    for name in ("model.conv.bias", "alphas_cumprod", "position_ids"):
        torch.testing.assert_close(full[name], tensors[name], rtol=0, atol=0)


def test_missing_rows_of_the_token_embedding_get_the_same_noise_at_every_load(tensors: Tensors, tmp_path: Path) -> None:
    save_packed(tmp_path / "a.safetensors", tensors, torch.tensor([1]))
    first, second = (packing.load(tmp_path / "a.safetensors")[packing.TOKEN_EMBEDDING] for _ in range(2))
    assert first.shape == (VOCABULARY, 32)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert 0.01 < first[2:].float().std() < 0.03


def test_a_checkpoint_that_is_not_packed_is_loaded_and_copied_unchanged(tensors: Tensors, tmp_path: Path) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(tensors, str(source))
    torch.testing.assert_close(packing.load(source), tensors, rtol=0, atol=0)
    packing.write_full(source, target)
    assert target.read_bytes() == source.read_bytes()


def test_write_full_unpacks_the_weights_to_their_original_types(tensors: Tensors, tmp_path: Path) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_packed(source, tensors, torch.tensor([1]))
    packing.write_full(source, target)
    written = load_file(str(target))
    torch.testing.assert_close(written, packing.load(source, torch.float16), rtol=0, atol=0)
    assert {name: tensor.dtype for name, tensor in written.items()} == {n: t.dtype for n, t in tensors.items()}
    with safe_open(str(target), framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_bundled_lora_is_unpacked_to_the_names_shapes_and_metadata_of_a_lora(tmp_path: Path) -> None:
    target = tmp_path / "lora.safetensors"
    packing.write_full(small_model.LORA, target)
    written = load_file(str(target))
    assert {tensor.dtype for tensor in written.values()} == {torch.float16}
    # the LoRA has rank 8
    assert written["lora_unet_input_blocks_1_0_in_layers_2.lora_down.weight"].shape == (8, 64, 3, 3)
    assert written["lora_unet_input_blocks_1_0_in_layers_2.lora_up.weight"].shape == (64, 8, 1, 1)
    with safe_open(str(target), framework="pt") as file:
        assert file.metadata() == {"ss_network_module": "networks.lora"}


class Net(nn.Module):
    """A network with two convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block = nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(nn.SiLU(), nn.Conv2d(8, 4, 1))
        self.last = nn.Linear(4, 5)


def test_a_lora_adds_the_product_of_its_factors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, tensors, expected = Net(), {}, {}
    for name in ("first", "block.1", "last"):
        weight = net.get_submodule(name).weight
        outputs, *inputs = weight.shape
        down, up = torch.randn(2, *inputs), torch.randn(outputs, 2, *[1] * (len(inputs) - 1))
        layer = "lora_unet_" + name.replace(".", "_")
        tensors |= {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up, f"{layer}.alpha": torch.tensor(3)}
        # the product is multiplied by alpha / rank
        expected[name] = weight + 3 / 2 * torch.einsum("or,r...->o...", up.flatten(1), down)
    save_file(tensors, str(tmp_path / "lora.safetensors"))
    changed = copy.deepcopy(net)
    small_model.add_lora(changed, tmp_path / "lora.safetensors")
    for name, weight in expected.items():
        torch.testing.assert_close(changed.get_submodule(name).weight, weight)
        torch.testing.assert_close(changed.get_submodule(name).bias, net.get_submodule(name).bias, rtol=0, atol=0)
    with pytest.raises(KeyError):
        small_model.add_lora(nn.Sequential(nn.Linear(3, 3)), tmp_path / "lora.safetensors")


def test_an_interrupted_write_leaves_the_earlier_file(
    tensors: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_packed(source, tensors, torch.tensor([1]))
    target.write_bytes(b"earlier")

    def interrupted(_tensors: Tensors, file: str, metadata: dict[str, str]) -> None:
        Path(file).write_bytes(b"incomplete")
        raise KeyboardInterrupt

    monkeypatch.setattr(packing, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        packing.write_full(source, target)
    assert target.read_bytes() == b"earlier"
