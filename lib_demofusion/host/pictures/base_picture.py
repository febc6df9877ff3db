"""The base image's latent and images, from which the stages start."""

from __future__ import annotations

from typing import Any

import torch
from modules import devices, processing, shared
from torch import Tensor

from lib_demofusion.host.backends import host
from lib_demofusion.host.common.precision import as_latent
from lib_demofusion.host.common.scoped import replaced
from lib_demofusion.host.pictures.coding import decode, encode, finite
from lib_demofusion.method.plan import CELL
from lib_demofusion.method.views import Size

UPLOAD_SEED = 0
"""Seed of the encoder's random sample when the uploaded image is the base image, the same for every image."""


def base_latent(p: Any, samples: Any) -> Tensor:
    """Returns the base image's latent (B, C, H, W) in float32. Encodes again after hires fix, which returns images.

    Raises NansException if the latent contains NaN. In img2img, the host does not check its VAE's latent.
    """
    if getattr(samples, "already_decoded", False):
        return encode(p, samples)
    if getattr(p, "init_latent", None) is not None:
        finite(p.init_latent)
    if not torch.isfinite(samples).all():
        raise devices.NansException("the base image is NaN; --no-half or --upcast-sampling may help")
    return as_latent(host().family(p.sd_model).form.to_method(samples))


def base_size(p: Any, samples: Any) -> Size:
    """Returns height and width in cells of `samples`, which are latents, or images after hires fix."""
    if getattr(samples, "already_decoded", False):
        return samples[0].shape[-2] // CELL, samples[0].shape[-1] // CELL
    latent = host().family(p.sd_model).form.to_method(samples)
    return latent.shape[-2], latent.shape[-1]


def base_images(p: Any, samples: Any, checkpoint: Any) -> Any:
    """Returns the base images as the webui decodes them, or None if the VAE of the stages decodes them equally.

    Hires fix returns images already. After a refiner, the refiner's VAE decodes the latents. It stays loaded until the
    stages load the checkpoint of the base image again.
    """
    if getattr(samples, "already_decoded", False):
        return samples
    return decode(p, samples) if shared.sd_model.sd_checkpoint_info != checkpoint else None


def own_generators() -> Any:
    """Returns a context that restores the state of torch's global random generators at its end.

    The VAE encoder of the next img2img job draws from these generators.
    """
    return torch.random.fork_rng(devices=[devices.device] if devices.device.type == "cuda" else [])


def encode_upload_alike(p: Any) -> None:
    """Makes the next call of `p.init` encode the uploaded image to the same latent every time.

    The webui's encoder draws from torch's global generator, whose state depends on earlier jobs. Every image of a batch
    is encoded on its own, so its latent does not depend on the batch.
    """
    init, encode_all = p.init, processing.images_tensor_to_samples

    def one_by_one(image: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        latents = []
        for single in image:
            torch.manual_seed(UPLOAD_SEED)
            latents.append(encode_all(single[None], *args, **kwargs))
        return torch.cat(latents)

    def seeded_init(*args: Any, **kwargs: Any) -> None:
        del p.init
        with own_generators(), replaced(processing, images_tensor_to_samples=one_by_one):
            torch.manual_seed(UPLOAD_SEED)
            init(*args, **kwargs)

    p.init = seeded_init
