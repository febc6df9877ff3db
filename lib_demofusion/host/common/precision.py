"""In which precision what is computed.

The webui samples in single precision whatever its networks are in: noise comes in it, and what is half precision beside
it (the latent that an encoder in half precision made for img2img) is brought to it by the first sum. A stage does the
same, and from its beginning: the base latent, anchors, noise, x, and every mean and deviation are float32. In half
precision the noise levels of a model with zero terminal SNR (up to 4500) would overflow when they are squared, and a
result would be rounded once more with every stage.

* The UNet is called as the webui calls it, inside the context that the webui samples in (`sampling`): what it is in,
  autocast, --upcast-sampling and --precision half are the webui's affair. Predictions are added up in float32.
* Blurs are convolutions, which autocast would do in half precision: they leave it (`method.filters`).
* The VAE is called outside autocast and in the webui's own type for it (`devices.dtype_vae`), as the webui does.
"""

from __future__ import annotations

from typing import Any

import torch
from modules import devices
from torch import Tensor


def sampling() -> Any:
    """Returns the context that the host samples in (modules/processing.py), closed again before `post_sample`."""
    return devices.without_autocast() if devices.unet_needs_upcast else devices.autocast()


def as_latent(x: Tensor) -> Tensor:
    """Returns a latent of the host's (B, C, h, w) in the type of all latents of a run, as it is where it has that."""
    return x.to(torch.float32)
