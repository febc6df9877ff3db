"""Derives checkpoints of other kinds, such as inpainting models, from a tiny SD1 and a tiny SDXL checkpoint.

If a derived checkpoint has more weights than the original, the additional weights are random with a fixed seed, and the
additional biases are zero. The derived checkpoints are never stored in the repository.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SD1, SDXL = "tiny-sd1", "tiny-sdxl"
UNET = "model.diffusion_model"
UNET_CHANNELS = "in_channels: 4, out_channels: 4, model_channels"
MODEL_CLASS = "ldm.models.diffusion.ddpm.LatentDiffusion"

# Each list describes one kind of checkpoint: texts of the YAML configuration, and the texts that replace them.
V = [("    timesteps: 1000\n", '    timesteps: 1000\n    parameterization: "v"\n')]
INPAINTING = [
    (UNET_CHANNELS, UNET_CHANNELS.replace("4", "9", 1)),
    (MODEL_CLASS, "ldm.models.diffusion.ddpm.LatentInpaintDiffusion"),
    ("conditioning_key: crossattn", "conditioning_key: hybrid\n    finetune_keys: null"),
]
EDIT = [
    (UNET_CHANNELS, UNET_CHANNELS.replace("4", "8", 1)),
    (MODEL_CLASS, "modules.models.diffusion.ddpm_edit.LatentDiffusion"),
    ("conditioning_key: crossattn", "conditioning_key: hybrid"),
    ('cond_stage_key: "txt"', "cond_stage_key: edit"),
]
# This checkpoint works only in txt2img, where the image embedding is all zeros. img2img needs an image embedder, but
# this configuration contains torch.nn.Identity instead.
UNCLIP = [
    (MODEL_CLASS, "ldm.models.diffusion.ddpm.ImageEmbeddingConditionedLatentDiffusion"),
    ("conditioning_key: crossattn", "conditioning_key: crossattn-adm"),
    ("params: {image_size: 32,", "params: {num_classes: sequential, adm_in_channels: 128, image_size: 32,"),
    (
        "    unet_config:",
        "    embedder_config: {target: torch.nn.Identity}\n"
        "    noise_aug_config:\n"
        "      target: ldm.modules.encoders.modules.CLIPEmbeddingNoiseAugmentation\n"
        "      params: {timestep_dim: 64,"
        " noise_schedule_config: {timesteps: 1000, beta_schedule: squaredcos_cap_v2}}\n"
        "    unet_config:",
    ),
]
SDXL_V = [("denoiser_scaling.EpsScaling", "denoiser_scaling.VScaling")]
SDXL_INPAINTING = [(UNET_CHANNELS, UNET_CHANNELS.replace("4", "9", 1))]
REFINER = [("adm_in_channels: 1536", "adm_in_channels: 1280"), ("target_size_as_tuple", "aesthetic_score")]

State = dict[str, Tensor]


def derive(source: Path, target: Path) -> list[str]:
    """Writes the derived checkpoints and their configurations to the new folder `target`, and returns their names.

    Returns an empty list if `source` does not contain a .yaml and a .safetensors file of both tiny checkpoints.
    """
    if not all((source / f"{name}.{kind}").exists() for name in (SD1, SDXL) for kind in ("yaml", "safetensors")):
        return []
    target.mkdir()
    sd1, sdxl = (load_file(source / f"{name}.safetensors") for name in (SD1, SDXL))
    kinds = {
        "tiny-sd1-v": (SD1, sd1, V),
        "tiny-sd1-inpainting": (SD1, widened(sd1, 5), INPAINTING),
        "tiny-sd1-edit": (SD1, widened(sd1, 4), EDIT),
        "tiny-sd1-unclip": (SD1, embedded(sd1), UNCLIP),
        "tiny-sdxl-v": (SDXL, sdxl, SDXL_V),
        "tiny-sdxl-inpainting": (SDXL, widened(sdxl, 5), SDXL_INPAINTING),
        "tiny-sdxl-refiner": (SDXL, narrowed(sdxl), REFINER),
    }
    for name, (layout, state, changes) in kinds.items():
        (target / f"{name}.yaml").write_text(changed((source / f"{layout}.yaml").read_text(), changes))
        save_file({key: value.contiguous() for key, value in state.items()}, target / f"{name}.safetensors")
    return list(kinds)


def changed(text: str, changes: Sequence[tuple[str, str]]) -> str:
    """Returns a configuration with some texts replaced. `changes` contains pairs of an old and a new text.

    Raises ValueError if the configuration does not contain one of the old texts.
    """
    for old, new in changes:
        if old not in text:
            raise ValueError(f"{old!r} is not in the configuration")
        text = text.replace(old, new)
    return text


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def widened(state: State, channels: int) -> State:
    """Returns a checkpoint whose UNet has `channels` additional input channels.

    Their weights have 0.3 times the standard deviation of the other weights in the layer.
    """
    key = f"{UNET}.input_blocks.0.0.weight"
    weight = state[key]
    more = randn(weight.shape[0], channels, *weight.shape[2:]) * weight.std() * 0.3
    return {**state, key: torch.cat([weight, more], dim=1)}


def embedded(state: State) -> State:
    """Returns a checkpoint whose UNet also receives an embedding of 128 numbers, as unCLIP models do."""
    width = len(state[f"{UNET}.time_embed.2.bias"])
    layer = f"{UNET}.label_emb.0"
    weights = {f"{layer}.0.weight": randn(width, 128) / 12, f"{layer}.2.weight": randn(width, width) / 12}
    return {**state, **weights, **{f"{layer}.{i}.bias": torch.zeros(width) for i in (0, 2)}}


def narrowed(state: State) -> State:
    """Returns an SDXL checkpoint whose UNet receives a shorter vector of sizes, as the refiner does.

    In the vector, 256 columns encode each number. The vector of SDXL ends with the height and the width of the target
    size. The vector of the refiner ends with one number instead, an aesthetic score. It is 256 columns shorter.
    """
    key = f"{UNET}.label_emb.0.0.weight"
    return {**state, key: state[key][:, :-256]}
