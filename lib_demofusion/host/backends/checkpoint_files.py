"""Recognizes the model family of a checkpoint from the header of its file.

Forge and Forge Neo load a selected checkpoint only when a job begins. The panel needs to know its family earlier.
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
    # reForge has neither package. It loads a checkpoint as soon as you select it, so it needs no detection
    huggingface_guess = loader = None

LARGEST_HEADER = 100_000_000
"""Maximum number of bytes of a header in the safetensors format."""
CHROMA_LAYER = "model.diffusion_model.distilled_guidance_layer.layers.0.in_layer.bias"
"""The layer by which Forge recognizes Chroma (backend/loader.py, forge_loader). huggingface_guess takes Chroma
for Flux.1."""
RECTIFIED = "rectified"
"""Forge Neo recognizes rectified-flow SDXL by this word in the path (backend/loader.py, forge_loader)."""


def family_of_file(path: str) -> Family | None:
    """Returns the model family of a checkpoint file, or None if the webui's own detection does not recognize it."""
    try:
        found = Path(path).stat()
        return _recognized(path, (found.st_mtime_ns, found.st_size))
    except Exception:
        # the webui reports a broken or unknown file when it loads it
        return None


@functools.lru_cache(maxsize=8)
def _recognized(path: str, version: tuple[int, int]) -> Family | None:
    """Recognizes the file at `path` and caches the result.

    `version` is the file's time and size. It is only part of the cache's key, so that a replaced file is read again.
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

    Raises ValueError if the file is not in the safetensors format, which begins with the size of a JSON header.
    """
    with Path(path).open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        if size > LARGEST_HEADER:
            raise ValueError(f"{path} is not in the safetensors format")
        header: dict[str, Any] = json.loads(file.read(size))
    zero = torch.zeros(())
    return {name: zero.expand(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
