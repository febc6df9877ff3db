"""Reduces latents for the webui's live preview of a stage."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lib_demofusion.method.views import Size

PREVIEW_CELLS = 128
"""Longer side of a live preview in latent cells, 1024 pixels."""


def preview_size(size: Size) -> Size:
    """Returns the size in cells of the live preview of a latent of `size`, with the same aspect ratio."""
    shrink = max(max(size) / PREVIEW_CELLS, 1)
    return max(1, round(size[0] / shrink)), max(1, round(size[1] / shrink))


def for_preview(latent: Tensor) -> Tensor:
    """Downsamples a latent to the size of a preview. The host decodes it in one piece while the model runs.

    The latent is (B, C, H, W), or (B, C, 1, H, W) with Wan's VAE in Forge Neo.
    """
    size = latent.shape[-2], latent.shape[-1]
    small = preview_size(size)
    if small == size:
        return latent
    shrunk = F.interpolate(latent.reshape(-1, 1, *size), size=small, mode="bilinear", antialias=True)
    return shrunk.reshape(*latent.shape[:-2], *small)
