"""Reads the bundled weights, which the repository stores with 8 bits per weight.

Large matrices and kernels are stored as int8, with one scale for each output channel. The 3x3 kernels of the
autoencoder's decoder have one scale for each pair of an output and an input channel. Other weights are stored in half
precision. The token embedding of the text encoder is stored without the rows of the tokens that were not trained.
`load` fills these rows with noise from a fixed seed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

TOKEN_EMBEDDING = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
"""The name of the tensor with the token embedding of the text encoder."""
TRAINED_ROWS = "trained_words"
"""The name of the tensor with the indices of the rows of the token embedding that are stored."""
SCALE = ".row_scale"
"""Ending of names: the tensor with the scales of a weight has the name of the weight and this ending."""
STD = 0.02
"""Standard deviation of the noise in the rows of the token embedding that are not stored."""


def load(path: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Loads the tensors of a file, which can be packed or not.

    Weights stored as int8 are multiplied by their scales, and returned as `dtype`. Other tensors keep their types.
    """
    return _unpacked(*_read(path), dtype)


def _unpacked(packed: dict[str, Tensor], about: dict[str, str], dtype: torch.dtype) -> dict[str, Tensor]:
    """Returns the tensors of a file from its tensors as they are stored, and from its metadata (see `load`)."""
    tensors = {name: tensor for name, tensor in packed.items() if name != TRAINED_ROWS and not name.endswith(SCALE)}
    for name, weight in tensors.items():
        if weight.dtype == torch.int8:
            scale = packed[name + SCALE].float()
            tensors[name] = (weight.float() * scale[(...,) + (None,) * (weight.ndim - scale.ndim)]).to(dtype)
    if TRAINED_ROWS in packed:
        rows = tensors[TOKEN_EMBEDDING]
        table = STD * torch.randn(int(about["words"]), rows.shape[1], generator=torch.Generator().manual_seed(0))
        tensors[TOKEN_EMBEDDING] = table.to(dtype).index_copy(0, packed[TRAINED_ROWS].long(), rows)
    return tensors


def write_full(source: Path, target: Path) -> None:
    """Unpacks the file `source` to half precision, so that a webui can load it. A file that is not packed is copied.

    If you interrupt this, `target` is not changed, so a webui never loads an incomplete file.
    """
    packed, about = _read(source)
    partial = target.with_suffix(".partial")
    if all(tensor.dtype != torch.int8 for tensor in packed.values()):
        shutil.copy2(source, partial)
    else:
        kept = {name: text for name, text in about.items() if name not in ("packed", "words")}
        save_file(_unpacked(packed, about, torch.float16), str(partial), metadata=kept)
        partial.chmod(0o644)
    partial.replace(target)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors of a file as they are stored, and its metadata."""
    with safe_open(str(path), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
