"""Reads the bundled weights, which the repository stores with 8 bits per weight.

Large matrices and kernels are stored as int8, with one scale for each output. The 3x3 kernels of the autoencoder's
decoder have one scale for each output and input. Other weights are stored in half precision. The text encoder's table
of words is stored without the rows of words that were not trained. These rows are drawn again from a fixed seed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

WORDS = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
"""The name of the text encoder's table of words."""
USED = "trained_words"
"""The name of the tensor with the row numbers of the trained words."""
SCALE = ".row_scale"
"""The scales of a weight have its name with this ending."""
STD = 0.02
"""Standard deviation of the rows of words that were not trained."""


def load(path: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Loads the tensors of a file, packed or not. Weights that are stored as int8 are restored in the type `dtype`."""
    packed, about = _read(path)
    tensors = {name: tensor for name, tensor in packed.items() if name != USED and not name.endswith(SCALE)}
    for name, weight in tensors.items():
        if weight.dtype == torch.int8:
            scale = packed[name + SCALE].float()
            tensors[name] = (weight.float() * scale[(...,) + (None,) * (weight.ndim - scale.ndim)]).to(dtype)
    if USED in packed:
        rows = tensors[WORDS]
        table = STD * torch.randn(int(about["words"]), rows.shape[1], generator=torch.Generator().manual_seed(0))
        tensors[WORDS] = table.to(dtype).index_copy(0, packed[USED].long(), rows)
    return tensors


def write_full(source: Path, target: Path) -> None:
    """Writes a file, packed or not, as a file that a webui can load. Packed weights are restored in half precision."""
    packed, about = _read(source)
    if all(tensor.dtype != torch.int8 for tensor in packed.values()):
        shutil.copy2(source, target)
        return
    kept = {name: text for name, text in about.items() if name not in ("packed", "words")}
    save_file(load(source, torch.float16), str(target), metadata=kept)
    target.chmod(0o644)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors of a file as they are stored, and its metadata."""
    with safe_open(str(path), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
