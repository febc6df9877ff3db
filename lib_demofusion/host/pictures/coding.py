"""From latents to images and back, for a job: by the webui's own functions and in parts where need be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from modules import devices, processing, sd_samplers_common, shared
from torch import Tensor

from lib_demofusion.host.backends import host
from lib_demofusion.host.common import options
from lib_demofusion.host.common.precision import as_latent
from lib_demofusion.host.pictures import vae
from lib_demofusion.host.progress import timing
from lib_demofusion.tiled_vae.tiling import AUTOMATIC


def decode(p: Any, latent: Tensor, report: vae.Report | None = None) -> Any:
    """Returns the images (3, H, W) of a latent (B, C, h, w) as the host's DecodedSamples, on the CPU.

    `report` is told the share that is done after every part, and half while all is decoded at once; what it raises ends
    the work. Raises what the host raises: out of memory where no way fits, or NaN after its own retry in higher
    precision.
    """
    if shared.opts.sd_vae_decode_method != "Full":
        p.extra_generation_params["VAE Decoder"] = shared.opts.sd_vae_decode_method
    tell = _teller(report, len(latent))
    form = host().family(p.sd_model).form
    with timing.decoding(p, latent):
        devices.torch_gc()
        with _in_parts(p, tell) as ours:
            if "decoder" not in ours:
                tell(0.5, len(latent))
            x = form.to_host(latent)
            made = processing.decode_latent_batch(p.sd_model, x, target_device=devices.cpu, check_for_nans=True)
            made[:] = [as_picture(sample) for sample in made]
            return made


def encode(p: Any, pictures: Iterable[Tensor], report: vae.Report | None = None) -> Tensor:
    """Returns the latents (B, C, h, w) in float32 of the job's images, each (3, H, W) or (1, 3, H, W) in -1..1.

    The encoder draws from torch's global generator, hence each image is encoded alone under its own seed. `report` is
    told the share that is done; what it raises ends the work. Raises NansException where the VAE fails.
    """
    # what the decoder left in torch's cache is not of the sizes that the encoder needs
    devices.torch_gc()
    method = sd_samplers_common.approximation_indexes.get(shared.opts.sd_vae_encode_method)
    latents, tell = [], _teller(report, len(p.seeds))
    with _in_parts(p, tell) as ours, host().encoding(p):
        for seed, picture in zip(p.seeds, pictures):
            torch.manual_seed(int(seed))
            # under the same name, so that the larger of them goes
            picture = (
                (as_picture(picture)[None].float() * 0.5).add_(0.5).clamp_(0, 1).to(shared.device, devices.dtype_vae)
            )
            latents.append(finite(sd_samplers_common.images_tensor_to_samples(picture, method, p.sd_model)))
            if "encoder" not in ours:
                tell(1.0, 1)
    return as_latent(host().family(p.sd_model).form.to_method(torch.cat(latents)))


def as_picture(sample: Tensor) -> Tensor:
    """Returns a decoded image (3, H, W); those of Wan's VAE in Forge Neo come as (1, 3, H, W)."""
    return sample[0] if sample.ndim == 4 else sample


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


def _teller(report: vae.Report | None, count: int) -> vae.ReportOfSome:
    """Returns what to tell of some of `count` images."""
    return vae.of_all(report or (lambda share: None), count)


def _in_parts(p: Any, tell: vae.ReportOfSome) -> Any:
    """Returns the context in which the autoencoder works as the settings say."""
    return vae.in_parts(p.sd_model, options.value(options.DECODE, AUTOMATIC), tell)
