"""What the stages start from: the base picture's latent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from modules import devices, sd_samplers_common, shared
from torch import Tensor

from lib_demofusion.host import options
from lib_demofusion.host.pictures import vae


def base_latent(p: Any, samples: Any) -> Tensor:
    """Returns the base's latent (B, C, H, W); hires fix hands on decoded pictures, which are encoded again."""
    return encode(p, samples) if getattr(samples, "already_decoded", False) else samples


def encode(p: Any, pictures: Iterable[Tensor], report: vae.Report | None = None) -> Tensor:
    """Returns the latents (B, C, h, w) of the job's pictures, each (3, H, W) in -1..1.

    The encoder draws from torch's global generator, hence each picture is encoded alone under its own seed. `report` is
    told the share that is done; what it raises ends the work.
    """
    method = sd_samplers_common.approximation_indexes.get(shared.opts.sd_vae_encode_method)
    latents = []
    of_all = report and vae.of_all(report, len(p.seeds))
    with vae.in_parts(p.sd_model, options.value(options.DECODE, vae.AUTOMATIC), of_all):
        for seed, picture in zip(p.seeds, pictures):
            torch.manual_seed(int(seed))
            # under the same name, so that the larger of them goes
            picture = (picture[None].float() * 0.5).add_(0.5).clamp_(0, 1).to(shared.device, devices.dtype_vae)
            latents.append(sd_samplers_common.images_tensor_to_samples(picture, method, p.sd_model))
    return torch.cat(latents).to(devices.dtype)


def own_generators() -> Any:
    """Returns a context after which torch's global generators are as a plain job leaves them.

    The next img2img job's VAE encoder draws from them.
    """
    return torch.random.fork_rng(devices=[devices.device] if devices.device.type == "cuda" else [])
