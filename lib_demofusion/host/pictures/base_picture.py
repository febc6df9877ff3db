"""What the stages start from: the base picture's latent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from modules import devices, sd_samplers_common, shared
from torch import Tensor

from lib_demofusion.host import options
from lib_demofusion.host.pictures import vae
from lib_demofusion.host.precision import as_latent


def base_latent(p: Any, samples: Any) -> Tensor:
    """Returns the base's latent (B, C, H, W) in float32; hires fix hands on pictures, which are encoded again.

    Raises NansException where it holds NaN, which in img2img the host may have got from the VAE without a word.
    """
    if getattr(samples, "already_decoded", False):
        return encode(p, samples)
    if getattr(p, "init_latent", None) is not None:
        finite(p.init_latent)
    if not torch.isfinite(samples).all():
        raise devices.NansException("the base image is NaN; --no-half or --upcast-sampling may help")
    return as_latent(samples)


def encode(p: Any, pictures: Iterable[Tensor], report: vae.Report | None = None) -> Tensor:
    """Returns the latents (B, C, h, w) in float32 of the job's pictures, each (3, H, W) in -1..1.

    The encoder draws from torch's global generator, hence each picture is encoded alone under its own seed. `report` is
    told the share that is done; what it raises ends the work. Raises NansException where the VAE fails.
    """
    # what the decoder left in torch's cache is not of the sizes that the encoder needs
    devices.torch_gc()
    method = sd_samplers_common.approximation_indexes.get(shared.opts.sd_vae_encode_method)
    latents = []
    of_all = report and vae.of_all(report, len(p.seeds))
    with vae.in_parts(p.sd_model, options.value(options.DECODE, vae.AUTOMATIC), of_all):
        for seed, picture in zip(p.seeds, pictures):
            torch.manual_seed(int(seed))
            # under the same name, so that the larger of them goes
            picture = (picture[None].float() * 0.5).add_(0.5).clamp_(0, 1).to(shared.device, devices.dtype_vae)
            latents.append(finite(sd_samplers_common.images_tensor_to_samples(picture, method, p.sd_model)))
    return as_latent(torch.cat(latents))


def finite(latent: Tensor) -> Tensor:
    """Returns a latent that the VAE made; NansException where it holds NaN, before a stage is spent on it.

    The host looks at what is decoded only: a stage would end with a word about the model.
    """
    if torch.isfinite(latent).all():
        return latent
    problem = "the VAE's encoder returned NaN"
    if devices.dtype_vae == torch.float32:
        raise devices.NansException(f"{problem}: its file may be damaged, choose another under SD VAE")
    kind = str(devices.dtype_vae).removeprefix("torch.")
    raise devices.NansException(
        f"{problem}: {kind} may not be precise enough for it; add --no-half-vae to the command line, or choose a VAE"
        " that works in half precision under SD VAE (upscaler Latent does without the encoder)"
    )


def own_generators() -> Any:
    """Returns a context after which torch's global generators are as a plain job leaves them.

    The next img2img job's VAE encoder draws from them.
    """
    return torch.random.fork_rng(devices=[devices.device] if devices.device.type == "cuda" else [])
