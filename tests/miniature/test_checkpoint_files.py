"""Tests checkpoints that are selected in Forge or Forge Neo but not loaded yet.

The extension recognizes the kind of such a checkpoint from its file. The panel's summary line describes a job with this
checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from modules import sd_models
from safetensors.torch import load_file, save_file

from lib_demofusion.host import backends
from lib_demofusion.host.backends import checkpoint_files
from lib_demofusion.host.backends.checkpoint_files import family_of_file, stand_ins
from lib_demofusion.host.backends.families import BY_ENGINE, SD, SDXL_FLOW
from lib_demofusion.host.backends.forge import Forge
from lib_demofusion.host.integrations import refusals
from lib_demofusion.host.panel import line, preset_row
from lib_demofusion.host.panel.tab import TabValues

PREFIX = "model.diffusion_model."
LAYERS = {
    "Flux": {f"{PREFIX}double_blocks.0.img_attn.qkv.weight": (96, 32), f"{PREFIX}img_in.weight": (32, 64)},
    "ZImage": {"layers.0.ffn_norm1.weight": (32,), "cap_embedder.1.weight": (32, 16)},
    "StableDiffusionXL": {f"{PREFIX}input_blocks.0.0.weight": (32, 4, 3, 3)},
    "Wan": {f"{PREFIX}head.modulation": (1, 2, 32)},
}
"""Names and shapes of a few layers for each kind of model.

A file of Z-Image contains only a transformer, so the names of its layers have no prefix.
"""


class Guess:
    """Imitates `huggingface_guess`, with which Forge detects the kind of a model.

    `kinds` contains an empty class for every kind of model in LAYERS.
    """

    def __init__(self) -> None:
        self.kinds = {name: type(name, (), {}) for name in LAYERS}

    def guess(self, state: dict[str, torch.Tensor]) -> Any:
        for name, layers in LAYERS.items():
            found = {f"{PREFIX}{key.removeprefix(PREFIX)}" for key in layers}
            if found <= set(state):
                # the real function computes this standard deviation for Z-Image; the tensors of `stand_ins` are zeros
                assert name != "ZImage" or torch.std(state[f"{PREFIX}layers.0.ffn_norm1.weight"]).item() == 0
                return self.kinds[name]()
        raise ModuleNotFoundError("Failed to recognize model...")


def preprocess(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Adds PREFIX to the names of all layers if the file contains only a transformer."""
    return state if any(key.startswith(PREFIX) for key in state) else {PREFIX + key: x for key, x in state.items()}


@pytest.fixture(autouse=True)
def forge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Provides Forge's modules that detect checkpoints, and makes the extension use its backend for Forge."""
    detection = Guess()
    engines = [type(name, (), {"matched_guesses": [kind]}) for name, kind in detection.kinds.items()]
    loader = SimpleNamespace(possible_models=engines, preprocess_state_dict=preprocess)
    monkeypatch.setattr(checkpoint_files, "loader", loader)
    monkeypatch.setattr(checkpoint_files, "huggingface_guess", detection)
    for module in (backends, line, refusals):
        monkeypatch.setattr(module, "host", Forge)


def written(folder: Path, name: str, file: str = "checkpoint.safetensors") -> str:
    """Writes a file with the layers of the kind `name`. Returns the path of the file."""
    save_file({key: torch.randn(shape).half() for key, shape in LAYERS[name].items()}, folder / file, {"by": "us"})
    return str(folder / file)


def test_stand_ins_returns_the_names_and_shapes_of_the_tensors_in_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "Flux")
    assert {name: x.shape for name, x in stand_ins(path).items()} == {n: x.shape for n, x in load_file(path).items()}


def test_chroma_is_recognized_by_its_guidance_layer(tmp_path: Path) -> None:
    """Without this layer, Forge would detect Chroma as Flux.1."""
    layers = {**LAYERS["Flux"], f"{PREFIX}distilled_guidance_layer.layers.0.in_layer.bias": (8,)}
    file = tmp_path / "chroma.safetensors"
    save_file({key: torch.randn(shape) for key, shape in layers.items()}, file)
    assert family_of_file(str(file)) == BY_ENGINE["Chroma"]


def test_a_subclass_of_a_known_kind_has_the_family_of_the_known_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, Forge's class for SDXL checkpoints that edit images is a subclass of its class for SDXL."""
    detection = checkpoint_files.huggingface_guess
    special = type("Special", (detection.kinds["StableDiffusionXL"],), {})
    monkeypatch.setattr(detection, "guess", lambda state: special())
    assert family_of_file(written(tmp_path, "StableDiffusionXL")) == BY_ENGINE["StableDiffusionXL"]


@pytest.mark.parametrize("name", LAYERS)
def test_a_file_is_recognized_by_the_webuis_detection(tmp_path: Path, name: str) -> None:
    assert family_of_file(written(tmp_path, name)) == BY_ENGINE[name]


def test_rectified_sdxl_is_recognized_by_its_path(tmp_path: Path) -> None:
    assert family_of_file(written(tmp_path, "StableDiffusionXL", "my-Rectified-XL.safetensors")) == SDXL_FLOW


def test_a_file_that_was_replaced_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "Flux")
    assert family_of_file(path) == BY_ENGINE["Flux"]
    reads = []
    monkeypatch.setattr(checkpoint_files, "stand_ins", lambda path: reads.append(path) or stand_ins(path))
    assert family_of_file(path) == BY_ENGINE["Flux"]
    assert not reads
    Path(written(tmp_path, "Wan", "other.safetensors")).replace(path)
    assert family_of_file(path) == BY_ENGINE["Wan"]


@pytest.mark.parametrize(
    "content", [b"", b"GGUF\x03\0\0\0 and more", b"\x05\0\0\0\0\0\0\0{not}", b"\x02\0\0\0\0\0\0\0{}"]
)
def test_a_file_without_readable_layers_is_not_recognized(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "checkpoint.gguf"
    file.write_bytes(content)
    assert family_of_file(str(file)) is None
    assert family_of_file(str(tmp_path / "missing.safetensors")) is None


def select(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Imitates Forge after a user has selected the checkpoint `path` but no job has loaded it yet."""
    chosen = {"checkpoint_info": SimpleNamespace(filename=path), "additional_modules": []}
    data = SimpleNamespace(sd_model=None, forge_loading_parameters=chosen, forge_hash="of another one")
    monkeypatch.setattr(sd_models, "model_data", data)


ON = {"enabled": True, "scale": 1.7, "stages": "fewest"}
"""At this scale, 512x640 pixels are enlarged to 870.4x1088 pixels, so the width is rounded."""


def test_the_summary_line_shows_sizes_for_the_selected_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tab = TabValues(width=512, height=640)
    select(monkeypatch, written(tmp_path, "Flux"))
    text = line.describe([ON], tab)
    assert "864x1088" in text
    assert "multiples of 16 pixels" in text
    assert line.NOT_LOADED in text
    # a file that cannot be read is treated like SD 1.5, whose sizes are multiples of 8
    select(monkeypatch, str(tmp_path / "missing.safetensors"))
    assert backends.selected_family() == SD
    assert "872x1088" in line.describe([ON], tab)


def test_the_summary_line_shows_why_the_selected_checkpoint_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    select(monkeypatch, written(tmp_path, "Wan"))
    assert "this checkpoint makes videos" in line.describe([ON], TabValues())


def test_the_panel_chooses_turbo_for_the_selected_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 8 steps and a CFG scale of 3.5, the panel chooses Turbo only for a model with built-in guidance."""
    tab, shown = TabValues(steps=8, cfg_scale=3.5), {"preset": "Fast", **preset_row.preset_values("Fast")}
    select(monkeypatch, written(tmp_path, "StableDiffusionXL"))
    assert "value" not in preset_row.automatic_preset(shown, tab)[0]
    select(monkeypatch, written(tmp_path, "Flux", "flux.safetensors"))
    assert preset_row.automatic_preset(shown, tab)[0]["value"] == "Turbo"
    assert line.TURBO_BETTER in line.describe([{"enabled": True, "preset": "Paper"}], tab)
