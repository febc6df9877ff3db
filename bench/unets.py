"""UNets of random weights to be timed: what they are filled with makes no difference to how long they take."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Unet = Callable[[Tensor], Tensor]
"""Denoises rows (N, 4, h, w): cond and uncond of each view."""

SMALL = "SD1's UNet at a fifth of its width (38 million weights)"


def sdxl_unet(device: str, dtype: torch.dtype) -> Unet:
    """Returns a UNet of SDXL's architecture that denoises at step 500."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    ).to(device, dtype)

    def evaluate(latent: Tensor) -> Tensor:
        rows = len(latent)
        text = latent.new_zeros(rows, 77, 2048)
        extra = {"text_embeds": latent.new_zeros(rows, 1280), "time_ids": latent.new_zeros(rows, 6)}
        return unet(latent, 500, text, added_cond_kwargs=extra).sample

    return evaluate


def small_unet() -> Unet:
    """Returns the UNet that `SMALL` describes: SD1's levels, blocks, heads and text, on 64 channels instead of 320."""
    from trial.unet import UNet, UNetConfig

    config = UNetConfig(64, (1, 2, 4, 4), num_res_blocks=2, attention_resolutions=(1, 2, 4), num_heads=8)
    unet = UNet(config).eval()

    def evaluate(latent: Tensor) -> Tensor:
        return unet(latent, torch.full((len(latent),), 500), latent.new_zeros(len(latent), 77, config.context_dim))

    return evaluate
