"""Tests features of the webui on flow models with random weights. See test_hosts_flow.py for the command.

Most of these tests also run on Stable Diffusion (test_hosts.py). Here they run on three transformers. Flux.1 schnell
has latents with four axes, and Qwen-Image has latents with five axes. Ernie-Image has packed latents, in which each
position covers 16x16 pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from webui.conftest import Webui, facts_or_skip, png
from webui.flow_families import ON, TWICE, family, small, webui
from webui.test_api_and_scripts import options
from webui.test_generate import assert_good
from webui.test_hosts import (
    test_an_error_in_a_stage_returns_the_previous_image,
    test_each_cell_of_a_plot_uses_only_its_own_values,
    test_progress_and_previews_of_a_stage,
    test_prompts_that_change_during_sampling_and_prompts_joined_by_and,
    test_the_result_of_hires_fix_is_enlarged,
)

__all__ = [
    "family",
    "test_an_error_in_a_stage_returns_the_previous_image",
    "test_each_cell_of_a_plot_uses_only_its_own_values",
    "test_progress_and_previews_of_a_stage",
    "test_prompts_that_change_during_sampling_and_prompts_joined_by_and",
    "test_the_result_of_hires_fix_is_enlarged",
    "webui",
]

KINDS = ("schnell", "qwen", "ernie")
"""One checkpoint for each of the three forms of latents."""
NETWORKS = ("model.diffusion_model.", "net.")
"""The possible prefixes of a transformer's weights in a checkpoint."""
LORA = "demofusion-test-flow-lora"

pytestmark = [
    pytest.mark.webui,
    pytest.mark.slow,
    pytest.mark.usefixtures("family"),
    pytest.mark.parametrize("family", KINDS, indirect=True),
]


def write_lora(checkpoint: Path, file: Path) -> None:
    """Writes a LoRA for one attention layer of the checkpoint.

    The standard deviation of the change by the LoRA is twice the standard deviation of the layer's weights.
    """
    with safe_open(checkpoint, "pt") as state:
        keys = sorted(key for key in state.keys() if key.startswith(NETWORKS) and "att" in key)  # noqa: SIM118
        layer = next(key for key in keys if key.endswith(".weight") and len(state.get_slice(key).get_shape()) == 2)
        rows, columns = state.get_slice(layer).get_shape()
    name = next(layer.removeprefix(prefix) for prefix in NETWORKS if layer.startswith(prefix))
    rank, drawn = 4, torch.Generator().manual_seed(1)
    down = torch.randn(rank, columns, generator=drawn) / columns**0.5
    up = torch.randn(rows, rank, generator=drawn)
    weights = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(float(rank))}
    prefix = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
    save_file({f"{prefix}.{key}": value for key, value in weights.items()}, file)


def test_a_lora_has_an_effect_in_the_stage(webui: Webui, family: Any) -> None:
    """The LoRA changes the image at weight 1 and not at weight 0.

    The base image is the upload, so the LoRA can change only the stage.
    """
    upload = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
    request = {"path": "img2img", "init_images": [png(upload)], "denoising_strength": 0.6}
    title = webui.call("options")["sd_model_checkpoint"]
    checkpoint = next(Path(e["filename"]) for e in webui.call("sd-models") if e["title"].startswith(title.split()[0]))
    folder = Path(facts_or_skip(webui, "lora-folder"))
    folder.mkdir(parents=True, exist_ok=True)
    write_lora(checkpoint, folder / f"{LORA}.safetensors")
    try:
        webui.call("refresh-loras", {})
        loras = ("", f"<lora:{LORA}:0>", f"<lora:{LORA}:1>", "")
        made = [small(webui, prompt=f"a tree{lora}", **request) for lora in loras]
    finally:
        (folder / f"{LORA}.safetensors").unlink()
    assert made[1].digests == made[0].digests == made[3].digests
    assert_good(made[2], TWICE)
    assert made[2].digests != made[0].digests


def test_every_stage_is_saved(webui: Webui, family: Any, tmp_path: Path) -> None:
    own = {"samples_save": True, "save_to_dirs": False, "outdir_txt2img_samples": str(tmp_path)}
    with options(webui, **own):
        result = small(webui, {**ON, "stages": "1,1.5,2", "save_stages": True}, save_images=True)
    assert_good(result, TWICE)
    sizes = []
    for path in sorted(tmp_path.iterdir()):
        with Image.open(path) as image:
            sizes.append(image.size)
    assert sizes == [(64, 64), (96, 96), TWICE]
