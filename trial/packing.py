"""Checkpoints at 8 bits a weight: pack for the repository, unpack for use.

A matrix or kernel is stored as int8 with one scale for each row (first axis); the rest stays in half precision, and so
does the decoder, which starts from designed weights of very different sizes and would lose 2.5 dB. Of the table of
words only the rows that were trained are stored; the others are drawn again from a fixed seed.

python -m trial.packing PACKED.safetensors --to FULL.safetensors writes what a webui loads.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

WORDS = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
USED = "trained_words"
EXACT = "first_stage_model.decoder."
SCALE = ".row_scale"
SMALLEST = 512
"""Tensors with fewer numbers are kept in half precision."""
FORMAT = "demofusion-int8"
STD = 0.02
"""Of the words that were never trained, as in CLIP."""


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 of the weight's shape, and a float32 scale (rows,) for its rows."""
    rows = weight.float().flatten(1)
    scale = rows.abs().amax(1).clamp(min=1e-12) / 127.0
    return (rows / scale[:, None]).round().to(torch.int8).reshape(weight.shape), scale


def pack(tensors: dict[str, Tensor], used: Tensor) -> dict[str, Tensor]:
    """The packed form of a full checkpoint, whose trained words are the rows `used` of the table."""
    packed = {USED: used.to(torch.int32)}
    for name, tensor in tensors.items():
        weight = tensor[used] if name == WORDS else tensor
        large = weight.is_floating_point() and weight.ndim >= 2 and weight.numel() >= SMALLEST
        if large and not name.startswith(EXACT):
            packed[name], packed[name + SCALE] = quantised(weight)
        else:
            exact = not weight.is_floating_point() or "." not in name or weight.ndim == 0
            packed[name] = weight if exact else weight.half()
    return {name: tensor.contiguous() for name, tensor in packed.items()}


def unpack(packed: dict[str, Tensor], words: int) -> dict[str, Tensor]:
    """The full checkpoint in half precision, with a table of `words` rows."""
    full: dict[str, Tensor] = {}
    for name, tensor in packed.items():
        if name == USED or name.endswith(SCALE):
            continue
        if tensor.dtype == torch.int8:
            scale = packed[name + SCALE]
            tensor = (tensor.float() * scale.reshape(-1, *[1] * (tensor.ndim - 1))).half()
        full[name] = tensor
    table = STD * torch.randn(words, full[WORDS].shape[1], generator=torch.Generator().manual_seed(0))
    table[packed[USED].long()] = full[WORDS].float()
    full[WORDS] = table.half()
    return full


def save(path: Path, tensors: dict[str, Tensor], used: Tensor) -> None:
    """Writes the packed form of a full checkpoint in one go."""
    partial = path.with_suffix(".partial")
    words = tensors[WORDS].shape[0]
    save_file(
        pack(tensors, used), str(partial), metadata={"format": "pt", "packed": FORMAT, "words": json.dumps(words)}
    )
    partial.chmod(0o644)
    partial.replace(path)


def packed_words(path: Path) -> int | None:
    """Rows of the table of words of a packed checkpoint when unpacked; None for one that is not packed."""
    with safe_open(str(path), framework="pt") as file:
        about = file.metadata() or {}
    return json.loads(about["words"]) if about.get("packed") == FORMAT else None


def load(path: Path) -> dict[str, Tensor]:
    """The full tensors of a checkpoint, packed or not."""
    words = packed_words(path)
    tensors = load_file(str(path))
    return tensors if words is None else unpack(tensors, words)


def write_full(source: Path, target: Path) -> None:
    """Writes a checkpoint, packed or not, as one that a webui loads."""
    partial = target.with_suffix(".partial")
    if packed_words(source) is None:
        shutil.copy2(source, partial)
    else:
        save_file(load(source), str(partial), metadata={"format": "pt"})
        partial.chmod(0o644)
    partial.replace(target)


def main() -> None:
    """Command line."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("packed", type=Path)
    options.add_argument("--to", type=Path, required=True)
    args = options.parse_args()
    write_full(args.packed, args.to)
    shutil.copyfile(args.packed.with_suffix(".yaml"), args.to.with_suffix(".yaml"))


if __name__ == "__main__":
    main()
