"""Tests that LoRAs and control models have an effect in the stages, in webuis of Forge's family.

See test_hosts.py for the command. The LoRA has random weights. The control model has random weights and weights of the
loaded checkpoint. In most tests, the base image is the upload, so the LoRA and the control model can change only the
stage.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from webui import hosts
from webui.conftest import Result, Webui, png, started
from webui.test_generate import assert_good
from webui.test_hosts import ON, TWICE, hires_fix, real_layout, small, upload

__all__ = ["real_layout", "upload"]

pytestmark = [pytest.mark.webui, pytest.mark.slow]

LORA, CONTROL = "demofusion-test-lora", "demofusion-test-control"
UNET = "model.diffusion_model."
LAYER = "middle_block.1.transformer_blocks.0.attn2.to_out.0.weight"
"""The name of a layer that every UNet has."""
LAYER_OF_LORAS = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0"
"""The name of the same layer in a LoRA."""
HINT_WIDTHS = (3, 16, 16, 32, 32, 96, 96, 256)
"""Numbers of channels in the layers of ControlNet that read the hint.

The first number is the number of channels of the hint. Each further number is the number of output channels of a layer.
The last layer is not listed, because its number of output channels depends on the checkpoint: it is the number of
output channels of the UNet's first layer. In the webui, the third, the fifth and the seventh layer halve the height and
the width of the hint.
"""


def randn(*shape: int) -> Tensor:
    """Returns random values that depend only on the shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def write_lora(unet: dict[str, Tensor], file: Path) -> None:
    """Writes a LoRA for LAYER. At weight 1, it adds values with a standard deviation of 2 / sqrt(columns)."""
    rank, (rows, columns) = 4, unet[LAYER].shape
    down, up = randn(rank, columns) / columns**0.5, randn(rows, rank)
    state = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(float(rank))}
    save_file({f"{LAYER_OF_LORAS}.{key}": value for key, value in state.items()}, file)


def write_control(unet: dict[str, Tensor], file: Path) -> None:
    """Writes a control model: encoder and middle block of the checkpoint's UNet, and random layers that read the hint.

    The random layers process each pixel of the hint separately. Only the first output of the control model is not zero.
    Each part of the hint therefore changes the UNet's features mainly at the same place.
    """
    state = {key: value for key, value in unet.items() if not key.startswith(("output_blocks", "out."))}
    first = unet["input_blocks.0.0.weight"]
    widths = (*HINT_WIDTHS, len(first))
    for layer, (before, after) in enumerate(pairwise(widths)):
        weight = torch.zeros(after, before, 3, 3)
        weight[:, :, 1, 1] = randn(after, before) * (2 / before) ** 0.5
        state[f"input_hint_block.{2 * layer}.weight"] = weight
        state[f"input_hint_block.{2 * layer}.bias"] = torch.zeros(after)
    blocks = 1 + max(int(key.split(".")[1]) for key in unet if key.startswith("input_blocks."))
    for block in range(blocks):
        width = _width(unet, block)
        weight = 2 * randn(width, width, 1, 1) / width**0.5
        state[f"zero_convs.{block}.0.weight"] = weight if block == 0 else torch.zeros_like(weight)
        state[f"zero_convs.{block}.0.bias"] = torch.zeros(width)
    width = len(unet["middle_block.0.out_layers.3.bias"])
    state["middle_block_out.0.weight"] = torch.zeros(width, width, 1, 1)
    state["middle_block_out.0.bias"] = torch.zeros(width)
    save_file({f"control_model.{key}": value.to(first).contiguous() for key, value in state.items()}, file)


def _width(unet: dict[str, Tensor], block: int) -> int:
    """Returns the number of output channels of a block of the encoder."""
    ends = ("0.out_layers.3.bias", "0.op.bias", "0.bias")
    return len(next(unet[key] for key in (f"input_blocks.{block}.{end}" for end in ends) if key in unet))


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest) -> Path:
    if not request.config.getoption("--webui") or not request.config.getoption("--checkpoints"):
        pytest.skip("this test starts its own webui, which needs --webui DIR and --checkpoints DIR")
    return Path(request.config.getoption("--webui"))


@pytest.fixture(scope="module")
def webui(folder: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webui]:
    """Starts a webui with a LoRA and, in Forge's family, a control model."""
    checkpoints, networks = request.config.getoption("--checkpoints"), tmp_path_factory.mktemp("networks")
    with safe_open(sorted(Path(checkpoints).glob("*.safetensors"))[0], "pt") as file:
        unet = {key.removeprefix(UNET): file.get_tensor(key) for key in file.keys() if key.startswith(UNET)}  # noqa: SIM118
    flags = ["--lora-dir", str(networks / "Lora")]
    write_lora(unet, _made(networks / "Lora") / f"{LORA}.safetensors")
    if hosts.find(folder) is not hosts.WEBUI:
        flags += ["--controlnet-dir", str(networks / "ControlNet")]
        write_control(unet, _made(networks / "ControlNet") / f"{CONTROL}.safetensors")
    with started(folder, tmp_path_factory.mktemp("webui"), *flags, checkpoints=checkpoints) as server:
        # in Forge Neo, the first image from an upload differs from all later ones by one 8-bit color level
        small(server, None, path="img2img", init_images=[png(Image.new("RGB", (64, 64)))])
        yield server


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def stage(webui: Webui, upload: Image.Image, more: Any = None, **request: Any) -> Result:
    """Runs a stage on the uploaded image. `more` contains further fields of DemoFusion."""
    on = {**ON, "img2img_first": False, "return_stages": True, **(more or {})}
    result = small(webui, on, path="img2img", init_images=[png(upload)], **request)
    assert_good(result, TWICE, (64, 64))
    return result


def change(one: Result, other: Result) -> np.ndarray[Any, Any]:
    """Asserts that the base images are equal, and returns the difference (H, W) of the final images in color levels."""
    assert one.digests[1] == other.digests[1]
    return difference(one, other)


def difference(one: Result, other: Result) -> np.ndarray[Any, Any]:
    """Returns the difference (H, W) of the first images in 8-bit color levels, averaged over the channels."""
    pictures = [np.asarray(result.images[0].convert("RGB"), float) for result in (one, other)]
    apart: np.ndarray[Any, Any] = np.abs(pictures[0] - pictures[1]).mean(axis=2)
    return apart


def test_a_lora_has_an_effect_according_to_its_weight(webui: Webui, upload: Image.Image) -> None:
    made = {
        weight: stage(webui, upload, prompt=f"a tree<lora:{LORA}:{weight}>" if weight else "a tree")
        for weight in ("", "0", "0.5", "1")
    }
    assert made["0"].digests == made[""].digests
    half, whole = (change(made[""], made[weight]).mean() for weight in ("0.5", "1"))
    assert 0.3 < half < whole
    assert stage(webui, upload, prompt="a tree").digests == made[""].digests


@pytest.mark.parametrize(("base", "hires"), [(True, False), (False, True), (True, True)])
def test_the_stages_use_the_loras_of_the_main_prompt_after_hires_fix(webui: Webui, base: bool, hires: bool) -> None:
    """Hires fix leaves the LoRAs of the hires prompt active. The stages must activate those in the main prompt."""
    tree, lora = "a tree", f"a tree<lora:{LORA}:1>"
    webui.call("networks", under="demofusion-test")
    prompts = {"prompt": lora if base else tree, "hr_prompt": lora if hires else tree}
    result = small(webui, **hires_fix(webui), **prompts)
    assert_good(result, (256, 256))
    # by width in pixels (64 is the first pass, 128 is hires fix, 256 is the stage): whether the LoRA was active
    active: dict[int, set[bool]] = {}
    for width, names in webui.call("networks", under="demofusion-test"):
        active.setdefault(8 * width, set()).add(names == [LORA])
    assert active == {64: {base}, 128: {hires}, 256: {base}}


def controlled(webui: Webui, upload: Image.Image, hint: Image.Image, weight: float = 1.0, more: Any = None) -> Result:
    """Runs a stage on the uploaded image, with a unit of ControlNet."""
    return stage(webui, upload, more, more_scripts=_unit(webui, hint, weight))


def native(webui: Webui, upload: Image.Image, hint: Image.Image) -> Result:
    """Runs the webui's own img2img at the size of the upload, with a unit of ControlNet."""
    request = {"init_images": [png(upload)], "denoising_strength": 1.0, "more_scripts": _unit(webui, hint)}
    return small(webui, None, path="img2img", **request)


def _unit(webui: Webui, hint: Image.Image, weight: float = 1.0) -> dict[str, Any]:
    unit = {"enabled": True, "module": "None", "model": _control(webui), "weight": weight, "save_detected_map": False}
    return {"ControlNet": {"args": [{**unit, "image": png(hint)}]}}


def _control(webui: Webui) -> str:
    """Returns the name of the control model in the list of this webui. Skips the test if there is no ControlNet."""
    try:
        with urllib.request.urlopen(f"{webui.url}/controlnet/model_list") as answer:
            names: list[str] = json.load(answer)["model_list"]
    except urllib.error.HTTPError as error:
        error.close()
        pytest.skip("this webui has no ControlNet built in")
    return next(name for name in names if name.startswith(CONTROL))


# dark gray and not black, because Forge Neo's ControlNet replaces a black hint with the drawing on the hint
DARK = Image.new("RGB", (64, 64), (64, 64, 64))


LATE = {"denoising_strength": 0.5, "cosine_scale_2": 10}
"""Fields with which the stage runs only at low noise levels, where the dilated views have almost no weight."""
DILATED = {"cosine_scale_2": 0.1}
"""Fields with which the dilated views have almost all the weight."""
PLACES = ((0, 1), (1, 0))
"""Row and column of the white square in each hint: 0 is the first quarter of a side, and 1 is the last quarter."""


def spot(row: int, column: int) -> Image.Image:
    """Returns a hint with a white square. The arguments are one of PLACES."""
    hint = DARK.copy()
    hint.paste("white", (48 * column, 48 * row, 48 * column + 16, 48 * row + 16))
    return hint


def blocks_of(changed: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Divides a square image (H, H) into 8 by 8 blocks, and returns their means (8, 8)."""
    side = len(changed) // 8
    means: np.ndarray[Any, Any] = changed.reshape(8, side, 8, side).mean(axis=(1, 3))
    return means


def test_a_hint_has_an_effect_at_its_position_in_tiles(webui: Webui, upload: Image.Image) -> None:
    """If each tile got the whole hint, the white square would have an effect in every tile, not only at one place."""
    dark = controlled(webui, upload, DARK, more=LATE)
    for row, column in PLACES:
        blocks = blocks_of(change(dark, controlled(webui, upload, spot(row, column), more=LATE)))
        touched = blocks[6 * row : 6 * row + 2, 6 * column : 6 * column + 2].mean()
        # the quadrant that contains the square is left out of the maximum
        blocks[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 0
        assert touched > 4 * blocks.max()


def test_a_hint_in_dilated_views_has_its_effect_at_the_same_places_as_in_img2img(
    webui: Webui, upload: Image.Image
) -> None:
    """Compares the stage with the webui's own img2img at the native size.

    The place of the effect depends on the checkpoint, so the test cannot compare with fixed places.
    """
    own, made = [], []
    for hint in (DARK, *(spot(*place) for place in PLACES)):
        own.append(native(webui, upload, hint))
        made.append(controlled(webui, upload, hint, more=DILATED))
    felt = [blocks_of(difference(image, own[0])) for image in own[1:]]
    changed = [blocks_of(change(result, made[0])) for result in made[1:]]
    # correlations of the stage (rows) with img2img (columns). The diagonal compares images with the same hint
    likeness = np.corrcoef([x.ravel() for x in (*changed, *felt)])[:2, 2:]
    assert likeness.diagonal().min() > likeness[::-1].diagonal().max() + 0.5


def test_a_control_model_has_an_effect_according_to_its_weight(webui: Webui, upload: Image.Image) -> None:
    made = {weight: controlled(webui, upload, DARK, weight) for weight in (0.0, 0.5, 1.0)}
    plain = stage(webui, upload)
    assert made[0.0].digests == plain.digests
    assert 0.3 < change(made[0.5], plain).mean() < change(made[1.0], plain).mean()
