"""Defines the precision of the computations.

The webui samples in single precision, regardless of the precision of its networks. Its noise is float32, and the first
sum with it converts a latent from an encoder in half precision. A stage uses float32 from the beginning: for the base
latent, anchors, noise, x, means and deviations. In half precision, squares of the noise levels of a model with zero
terminal SNR (up to 4500) would overflow, and every stage would round the result again.

* The UNet is called inside the context in which the webui samples (`sampling`). The webui handles the UNet's dtype,
  autocast, --upcast-sampling and --precision half. Predictions are summed in float32.
* Blurs are convolutions. Autocast would run them in half precision, so they disable it (`method.filters`).
* The VAE is called outside autocast and in the webui's dtype for it (`devices.dtype_vae`), as in the webui.
"""

from __future__ import annotations

from typing import Any

import torch
from modules import devices
from torch import Tensor


def sampling() -> Any:
    """Returns the context in which the host samples (modules/processing.py). It ends before `post_sample`."""
    return devices.without_autocast() if devices.unet_needs_upcast else devices.autocast()


def as_latent(x: Tensor) -> Tensor:
    """Converts a latent (B, C, h, w) of the host to the dtype of all latents of a run, without a copy if possible."""
    return x.to(torch.float32)
