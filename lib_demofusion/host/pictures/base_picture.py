"""What the stages start from: the base image's latent."""

from __future__ import annotations

from typing import Any

import torch
from modules import devices
from torch import Tensor

from lib_demofusion.host.backends import host
from lib_demofusion.host.pictures.coding import encode, finite
from lib_demofusion.host.precision import as_latent


def base_latent(p: Any, samples: Any) -> Tensor:
    """Returns the base's latent (B, C, H, W) in float32; hires fix hands on images, which are encoded again.

    Raises NansException where it holds NaN, which in img2img the host may have got from the VAE without a word.
    """
    if getattr(samples, "already_decoded", False):
        return encode(p, samples)
    if getattr(p, "init_latent", None) is not None:
        finite(p.init_latent)
    if not torch.isfinite(samples).all():
        raise devices.NansException("the base image is NaN; --no-half or --upcast-sampling may help")
    return as_latent(host().family(p.sd_model).form.to_method(samples))


def own_generators() -> Any:
    """Returns a context after which torch's global generators are as a plain job leaves them.

    The next img2img job's VAE encoder draws from them.
    """
    return torch.random.fork_rng(devices=[devices.device] if devices.device.type == "cuda" else [])
