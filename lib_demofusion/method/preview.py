"""What the webui shows of a stage while it is sampled."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lib_demofusion.method.views import Size

PREVIEW_CELLS = 128
"""Longer side of a live preview in latent cells, 1024 pixels."""


def preview_size(size: Size) -> Size:
    """Returns the size in cells of the live preview of a latent of `size`, of the same shape."""
    shrink = max(max(size) / PREVIEW_CELLS, 1)
    return max(1, round(size[0] / shrink)), max(1, round(size[1] / shrink))


def for_preview(latent: Tensor) -> Tensor:
    """Returns a latent no larger than a preview needs; the host decodes it whole, beside the sampling.

    The latent is (B, C, H, W), or (B, C, 1, H, W) as those of Wan's VAE in Forge Neo.
    """
    size = latent.shape[-2], latent.shape[-1]
    small = preview_size(size)
    if small == size:
        return latent
    shrunk = F.interpolate(latent.reshape(-1, 1, *size), size=small, mode="bilinear", antialias=True)
    return shrunk.reshape(*latent.shape[:-2], *small)
