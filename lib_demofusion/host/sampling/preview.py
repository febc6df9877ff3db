"""What the webui shows of a stage while it is sampled."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

PREVIEW_CELLS = 128
"""Longer side of a live preview in latent cells, 1024 pixels."""


def for_preview(latent: Tensor) -> Tensor:
    """Returns a latent (B, C, H, W) no larger than a preview needs; the host decodes it whole, beside the sampling."""
    shrink = max(latent.shape[-2:]) / PREVIEW_CELLS
    if shrink <= 1:
        return latent
    size = [max(1, round(n / shrink)) for n in latent.shape[-2:]]
    return F.interpolate(latent, size=size, mode="bilinear", antialias=True)
