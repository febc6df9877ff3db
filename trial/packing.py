"""Packs checkpoints to 8 bits per weight for the repository, and unpacks them for use.

A matrix or kernel is stored as int8 with one scale for each row (first axis). The rest is stored in half precision. The
weights of the decoder have very different sizes, so it would lose 2.5 dB with one scale per row. Its kernels therefore
have a scale for each output and input. Only the trained rows of the word table are stored. The others are drawn again
from a fixed seed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

WORDS = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
USED = "trained_words"
DECODER = "first_stage_model.decoder."
SCALE = ".row_scale"
SMALLEST = 512
"""Tensors with fewer elements are stored in half precision."""
FORMAT = "demofusion-int8"
STD = 0.02
"""Standard deviation of the words that were never trained, as in CLIP."""


def quantised(weight: Tensor, axes: int = 1) -> tuple[Tensor, Tensor]:
    """Quantises a weight to int8, with a scale for each entry of its first axes.

    The scales are float32 for one axis and float16 for more.
    """
    rest = weight.float().flatten(axes)
    scale = rest.abs().amax(-1).clamp(min=1e-5 if axes > 1 else 1e-12) / 127.0
    scale = scale.half() if axes > 1 else scale
    whole = (rest / scale[..., None].float()).round().clamp(-127, 127)
    return whole.to(torch.int8).reshape(weight.shape), scale


def is_large(weight: Tensor) -> bool:
    """Returns whether a tensor is a matrix or kernel that is worth quantising."""
    return weight.is_floating_point() and weight.ndim >= 2 and weight.numel() >= SMALLEST


def axes_of(name: str, weight: Tensor) -> int:
    """Returns the number of axes of a weight that have a scale for each entry."""
    return 2 if name.startswith(DECODER) and weight.ndim == 4 and weight[0, 0].numel() > 1 else 1


def pack_rows(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Quantises the large tensors and converts the rest to half precision. `unpack_rows` is the reverse."""
    packed: dict[str, Tensor] = {}
    for name, weight in tensors.items():
        if is_large(weight):
            packed[name], packed[name + SCALE] = quantised(weight, axes_of(name, weight))
        else:
            packed[name] = weight.half() if weight.is_floating_point() else weight
    return {name: tensor.contiguous() for name, tensor in packed.items()}


def unpack_rows(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    """Restores the tensors of `pack_rows`: float32 if they were quantised, otherwise as stored."""
    return {
        name: restored(tensor, packed[name + SCALE]) if tensor.dtype == torch.int8 else tensor
        for name, tensor in packed.items()
        if not name.endswith(SCALE)
    }


def restored(weight: Tensor, scale: Tensor) -> Tensor:
    """Returns the float32 weight from an int8 one and the scales of its first axes."""
    return weight.float() * scale.float().reshape(*scale.shape, *[1] * (weight.ndim - scale.ndim))


def pack(tensors: dict[str, Tensor], used: Tensor) -> dict[str, Tensor]:
    """Packs a full checkpoint. Its trained words are the rows `used` of the word table."""
    # the tensors of the schedule, which do not belong to a network
    exact = {name: tensor.contiguous() for name, tensor in tensors.items() if "." not in name}
    networks = {name: tensor[used] if name == WORDS else tensor for name, tensor in tensors.items() if "." in name}
    return {USED: used.to(torch.int32), **exact, **pack_rows(networks)}


def unpack(packed: dict[str, Tensor], words: int) -> dict[str, Tensor]:
    """Unpacks a full checkpoint in half precision, with a word table of `words` rows."""
    rows = unpack_rows({name: tensor for name, tensor in packed.items() if name != USED})
    full = {name: tensor.half() if packed[name].dtype == torch.int8 else tensor for name, tensor in rows.items()}
    table = STD * torch.randn(words, full[WORDS].shape[1], generator=torch.Generator().manual_seed(0))
    table[packed[USED].long()] = full[WORDS].float()
    full[WORDS] = table.half()
    return full


def save(path: Path, tensors: dict[str, Tensor], used: Tensor) -> None:
    """Writes the packed form of a full checkpoint."""
    words = tensors[WORDS].shape[0]
    write(path, pack(tensors, used), {"format": "pt", "packed": FORMAT, "words": json.dumps(words)})


def write(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """Writes tensors and their metadata atomically, so that another start never finds a partial file."""
    partial = path.with_suffix(".partial")
    save_file(tensors, str(partial), metadata=about)
    partial.chmod(0o644)
    partial.replace(path)


def packed_words(path: Path) -> int | None:
    """Returns the number of rows of a packed checkpoint's word table after unpacking, or None if it is not packed."""
    with safe_open(str(path), framework="pt") as file:
        about = file.metadata() or {}
    return json.loads(about["words"]) if about.get("packed") == FORMAT else None


def load(path: Path) -> dict[str, Tensor]:
    """Loads the full tensors of a checkpoint, packed or not."""
    words = packed_words(path)
    tensors = load_file(str(path))
    return tensors if words is None else unpack(tensors, words)


def write_full(source: Path, target: Path) -> None:
    """Writes a checkpoint, packed or not, in the form that a webui loads."""
    if packed_words(source) is not None:
        write(target, load(source), {"format": "pt"})
        return
    partial = target.with_suffix(".partial")
    shutil.copy2(source, partial)
    partial.replace(target)
