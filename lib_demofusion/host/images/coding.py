"""Decodes and encodes the latents of a job with the webui's own functions, tile by tile if necessary.

Also checks latents and images for NaN. The errors name the network that returned NaN, and a solution.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from modules import devices, processing, sd_samplers_common, shared
from torch import Tensor

from lib_demofusion.host.backends import host
from lib_demofusion.host.common import options
from lib_demofusion.host.images import vae
from lib_demofusion.host.progress import timing
from lib_demofusion.tiled_vae.tiling import AUTOMATIC

ROWS = 256
"""Number of pixel rows that are checked at once. The check needs memory in proportion to this number."""

NO_ENCODER = "the upscaler Latent does not need the encoder"


def decode(p: Any, latent: Tensor, report: vae.Report | None = None) -> Any:
    """Decodes a latent (B, C, h, w) to images (3, H, W) on the CPU, as the webui's DecodedSamples.

    `report` is called with the completed share: after every tile, or with 0.5 while the whole image is decoded at once.
    An exception that it raises ends the work. Raises the out-of-memory error of the last attempt if memory is
    not sufficient. Raises NansException if the latent contains NaN, or if an image still contains NaN after the webui's
    own retry in higher precision.
    """
    check_model_output(latent)
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
            made[:] = [checked_image(as_image(sample)) for sample in made]
            return made


def encode(p: Any, pictures: Iterable[Tensor], report: vae.Report | None = None) -> Tensor:
    """Encodes the job's images, each (3, H, W) or (1, 3, H, W) in -1..1, to latents (B, C, h, w) in float32.

    The encoder draws from torch's global generator, so each image is encoded on its own with its own seed. `report` is
    called with the completed share. An exception that it raises ends the work. Raises NansException if the VAE fails.
    """
    # the decoder's blocks in torch's cache do not have the sizes that the encoder needs
    devices.torch_gc()
    method = sd_samplers_common.approximation_indexes.get(shared.opts.sd_vae_encode_method)
    latents, tell = [], _teller(report, len(p.seeds))
    with _in_parts(p, tell) as ours, host().encoding(p):
        for seed, picture in zip(p.seeds, pictures):
            torch.manual_seed(int(seed))
            # the same name again, so that the larger tensor is freed
            picture = (
                (as_image(picture)[None].float() * 0.5).add_(0.5).clamp_(0, 1).to(shared.device, devices.dtype_vae)
            )
            latents.append(checked_latent(sd_samplers_common.images_tensor_to_samples(picture, method, p.sd_model)))
            if "encoder" not in ours:
                tell(1.0, 1)
    return as_latent(host().family(p.sd_model).form.to_method(torch.cat(latents)))


def as_latent(x: Tensor) -> Tensor:
    """Converts a latent (B, C, h, w) of the webui to float32, the dtype of all latents of a run.

    A stage uses float32 for the base latent, anchors, noise, x, means and deviations. In half precision, squares of the
    noise levels of a model with zero terminal SNR (up to 4500) would overflow, and every stage would round the result
    again. The webui also samples in float32: its noise is float32, so adding it to a latent in half precision gives
    float32.
    """
    return x.to(torch.float32)


def as_image(sample: Tensor) -> Tensor:
    """Returns a decoded image as (3, H, W). Wan's VAE in Forge Neo returns (1, 3, H, W)."""
    return sample[0] if sample.ndim == 4 else sample


def _teller(report: vae.Report | None, count: int) -> vae.ReportOfSome:
    """Returns a function that receives the share of some images, and reports the share of all `count` images."""
    return vae.of_all(report or (lambda share: None), count)


def _in_parts(p: Any, tell: vae.ReportOfSome) -> Any:
    """Returns a context in which the VAE runs whole or tile by tile, depending on the option and the free memory."""
    return vae.in_parts(p.sd_model, options.value(options.DECODE, AUTOMATIC), tell)


def checked_latent(latent: Tensor) -> Tensor:
    """Returns the encoder's latent unchanged. Raises NansException if it contains NaN or infinity.

    The webui checks only decoded images. Its error would come after the stage and name the model as the cause.
    """
    if torch.isfinite(latent).all():
        return latent
    raise devices.NansException(f"{_vae_problem('encoder')} ({NO_ENCODER})")


def checked_image(image: Tensor) -> Tensor:
    """Returns an image (3, H, W) of the decoder unchanged. Raises NansException if it contains NaN.

    A1111's webui checks only the first value, and Forge's family checks none. An upscaler would turn NaN into black.
    """
    if has_nan(image):
        raise devices.NansException(_vae_problem("decoder"))
    return image


def check_model_output(latent: Tensor) -> None:
    """Raises NansException if a sampled latent contains NaN or infinity."""
    if not torch.isfinite(latent).all():
        raise devices.NansException(model_problem())


def check_hires_image(image: Tensor) -> None:
    """Raises NansException if an image (3, H, W) that hires fix returned contains NaN.

    The stages would encode it, and the encoder's latent would be NaN too.
    """
    if has_nan(image):
        names = "the model or the VAE of hires fix returned NaN before the stages"
        flags = " and ".join(host().fp32_flags())
        raise devices.NansException(_problem(names, devices.dtype_unet, flags, "choose another checkpoint or VAE"))


def has_nan(image: Tensor) -> bool:
    """Returns whether an image (3, H, W) contains NaN."""
    return any(bool(torch.isnan(rows).any()) for rows in image.split(ROWS, dim=-2))


def model_problem() -> str:
    """Returns the error message for a latent of the model that contains NaN.

    In Forge Neo, flow models return NaN with the schedule type Uniform.
    """
    advice = "choose another checkpoint or schedule type"
    return _problem("the model returned NaN", devices.dtype_unet, host().fp32_flags()[0], advice)


def _vae_problem(part: str) -> str:
    advice = "choose another VAE"
    return _problem(f"the VAE's {part} returned NaN", devices.dtype_vae, host().fp32_flags()[1], advice)


def _problem(problem: str, numbers: torch.dtype, flags: str, advice: str) -> str:
    """Returns an error message with the probable cause and the solution, which depend on the type of the numbers."""
    if numbers == torch.float32:
        return f"{problem}: its file may be damaged; {advice}"
    kind = str(numbers).removeprefix("torch.")
    return f"{problem}: {kind} may not be precise enough; add {flags} to the command line, or {advice}"
