"""What the stages start from: the base image's latent."""

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
"""The encoder draws from its distribution under this seed when an upload is the base image, for every image alike."""


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


def base_size(p: Any, samples: Any) -> Size:
    """Returns height and width in cells of what the webui sampled: latents, or images behind hires fix."""
    if getattr(samples, "already_decoded", False):
        return samples[0].shape[-2] // CELL, samples[0].shape[-1] // CELL
    latent = host().family(p.sd_model).form.to_method(samples)
    return latent.shape[-2], latent.shape[-1]


def base_images(p: Any, samples: Any, checkpoint: Any) -> Any:
    """Returns the base's images as the webui makes them, or None if the VAE of the stages makes the same ones.

    Hires fix hands on images. After a refiner, latents are decoded by the VAE of the refiner, which is loaded until the
    stages go back to the checkpoint of the base image.
    """
    if getattr(samples, "already_decoded", False):
        return samples
    return decode(p, samples) if shared.sd_model.sd_checkpoint_info != checkpoint else None


def own_generators() -> Any:
    """Returns a context after which torch's global generators are as a plain job leaves them.

    The next img2img job's VAE encoder draws from them.
    """
    return torch.random.fork_rng(devices=[devices.device] if devices.device.type == "cuda" else [])


def encode_upload_alike(p: Any) -> None:
    """Makes the webui encode the upload to the same latent every time; acts on the next `p.init` only.

    The webui's encoder draws from torch's global generator, whose state depends on the jobs before. Every image of a
    batch is encoded alone, so that it is the same as without the batch.
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
