"""Recognizes the model family of a checkpoint from the header of its file.

Forge and Forge Neo load a selected checkpoint only when a job begins. The panel needs the family before that, for
example to estimate the cost of the stages.
"""

from __future__ import annotations

import functools
import json
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib_demofusion.host.backends.families import Family, family_named

try:
    import huggingface_guess
    from backend import loader
except ImportError:
    # reForge has neither package. It loads a checkpoint as soon as you select it, so files need not be recognized
    huggingface_guess = loader = None

LARGEST_HEADER = 100_000_000
"""Maximum number of bytes in a safetensors header. If a file states a larger number, it has another format."""
CHROMA_LAYER = "model.diffusion_model.distilled_guidance_layer.layers.0.in_layer.bias"
"""The layer by which Forge recognizes Chroma (backend/loader.py, forge_loader). Some versions of huggingface_guess
report Chroma as Flux.1.
"""
RECTIFIED = "rectified"
"""Forge Neo recognizes rectified-flow SDXL by this word in the path (backend/loader.py, forge_loader)."""


def family_of_file(path: str) -> Family | None:
    """Returns the model family of a checkpoint file, or None if the file cannot be read or its family is unknown."""
    try:
        found = Path(path).stat()
        return _recognized(path, (found.st_mtime_ns, found.st_size))
    except Exception:
        # no message is needed here, because the webui reports a broken or unknown file when it loads the file
        return None


@functools.lru_cache(maxsize=8)
def _recognized(path: str, version: tuple[int, int]) -> Family | None:
    """Recognizes the file at `path` and caches the result.

    `version` is the modification time and size of the file. This function does not use it, but it is part of the
    cache's key. If the file is replaced, the key changes and the new file is read.
    """
    state = loader.preprocess_state_dict(stand_ins(path))
    if CHROMA_LAYER in state:
        return family_named("Chroma")
    found = huggingface_guess.guess(state)
    engines = [engine for engine in loader.possible_models if isinstance(found, tuple(engine.matched_guesses))]
    exact = [engine for engine in engines if type(found) in engine.matched_guesses]
    return family_named((exact or engines)[0].__name__, flow=RECTIFIED in path.lower())


def stand_ins(path: str) -> dict[str, Tensor]:
    """Maps the name of every tensor in a file to zeros of the same shape, which use almost no memory.

    Reads only the header of the file. The first eight bytes of a safetensors file contain the size of the JSON header
    that follows. Raises ValueError if this size is too large or the header is not JSON. Raises struct.error if the file
    has fewer than eight bytes.
    """
    with Path(path).open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        if size > LARGEST_HEADER:
            raise ValueError(f"{path} is not in the safetensors format")
        header: dict[str, Any] = json.loads(file.read(size))
    zero = torch.zeros(())
    return {name: zero.expand(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
