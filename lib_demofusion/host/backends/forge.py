"""The backend for Forge's family: Forge, Forge Neo and reForge."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from modules import processing, sd_models, shared
from torch import Tensor

from lib_demofusion.host.backends import extra_networks, forge_refusals
from lib_demofusion.host.backends.checkpoint_files import family_of_file
from lib_demofusion.host.backends.families import SD, Family, family_of, unknown
from lib_demofusion.host.backends.forge_controlnet import ViewControl
from lib_demofusion.host.backends.forge_refusals import WRAPPER
from lib_demofusion.host.backends.forge_unet import FusedUnet, vectors_of
from lib_demofusion.host.backends.interface import StageParts
from lib_demofusion.host.common import replaced
from lib_demofusion.method.filters import for_preview
from lib_demofusion.method.plan import StagePlan

try:
    from backend.sampling.sampling_function import sampling_cleanup
except ImportError:
    try:
        from modules_forge.forge_sampler import sampling_cleanup
    except ImportError:
        sampling_cleanup = None

try:
    from backend.args import args as flags
except ImportError:
    flags = None

ESTIMATE = "memory_peak_estimation_modifier"
"""The option of a patched UNet for a function that estimates the memory of a model call (backend/patcher/unet.py)."""

ZERO_TERMINAL = "Zero Terminal SNR"
"""The value of the webui's setting `sd_noise_schedule` that enables zero terminal SNR (modules/processing.py)."""

STORED_IMAGES = ("ini_latent", "ref_latents")
"""Attributes in which a model for image editing stores the images that it has encoded (backend/diffusion_engine).

When the model encodes the next prompt, it uses these images as reference images.
"""


class Forge:
    """The backend for Forge's family.

    These webuis sample with the patched UNet in the attribute `forge_objects` of the loaded model.
    """

    def is_known(self) -> bool:
        return sampling_cleanup is not None

    def family(self, model: Any) -> Family:
        # before a model is loaded, the webui has a placeholder without this attribute
        if not hasattr(model, "forge_objects"):
            return SD
        # reForge's models have `model_sampling` instead of `predictor`. An earlier job can have set a flow schedule
        # there, so this attribute is not read. `refusal` rejects jobs that select flow sampling in reForge
        predictor = getattr(model.forge_objects.unet.model, "predictor", None)
        flow = predictor is not None and not adds_noise(predictor)
        return family_of(model, flow) or unknown(model)

    def is_pending(self) -> bool:
        # only Forge and Forge Neo have these attributes. reForge loads a checkpoint as soon as you select it
        data = sd_models.model_data
        chosen = getattr(data, "forge_loading_parameters", None)
        return bool(chosen) and str(chosen) != data.forge_hash

    def pending_family(self) -> Family | None:
        chosen = getattr(sd_models.model_data, "forge_loading_parameters", None) or {}
        checkpoint = chosen.get("checkpoint_info") if self.is_pending() else None
        return None if checkpoint is None else family_of_file(str(checkpoint.filename))

    def encoding(self, p: Any) -> AbstractContextManager[None]:
        return forget_encoded_images(p.sd_model)

    def unet(self, model: Any) -> Any:
        objects = getattr(model, "forge_objects", None)
        return getattr(getattr(objects, "unet", None), "model", None)

    def fp32_flags(self) -> tuple[str, str]:
        # only Forge Neo has --fp32-unet and --fp32-vae; Forge and reForge have the older names
        return ("--fp32-unet", "--fp32-vae") if hasattr(flags, "fp32_vae") else ("--all-in-fp32", "--vae-in-fp32")

    def refusal(self, p: Any) -> str | None:
        family = self.family(p.sd_model)
        reason = forge_refusals.refusal(p, family) or forge_refusals.sampler_problem(p, family.flow)
        # without a sampler, the base pass has not begun, and the UNet still has the patches of the previous job
        if reason is None and getattr(p, "sampler", None) is not None:
            reason = forge_refusals.patch_problem(p.sd_model.forge_objects.unet, family)
        return reason

    @contextmanager
    def base_checkpoint(self, p: Any, checkpoint: Any) -> Iterator[None]:
        if shared.sd_model.sd_checkpoint_info != checkpoint:
            raise RuntimeError("the base image's checkpoint is no longer loaded, and this webui cannot load it again")
        set_shift(p)
        extra_networks.activate_after_hires_pass(p)
        with schedule_of_base(p.sd_model):
            yield

    @contextmanager
    def sampling(self, p: Any, stage: StagePlan, views: int, anchor: Tensor, noise: Tensor) -> Iterator[None]:
        """Patches a copy of the UNet for the stage, as the webui does for each of its passes (modules/processing.py).

        Raises RuntimeError if a feature or patch does not work with the stages.
        """
        model = p.sd_model
        # for inpainting, the webui draws noise from torch's global generator, so it is seeded for each stage
        torch.manual_seed(int(p.seeds[0]) + stage.number)
        with replaced(model, forge_objects=model.forge_objects_after_applying_lora.shallow_copy()):
            family = self.family(model)
            form = family.form
            self._patch(p, form.to_host(anchor), form.to_host(noise))
            unet = model.forge_objects.unet.clone()
            # if the upload is the base image, there was no base pass. Other extensions have then patched the UNet for
            # the first time in `_patch`, so these patches were not checked before
            problem = forge_refusals.refusal(p, family) or forge_refusals.patch_problem(unet, family)
            if problem is not None:
                raise RuntimeError(problem)
            reserve_for_views(unet, form.host_shape(anchor.shape[1], stage.window), max(views, 1))
            model.forge_objects.unet = unet
            try:
                yield
            finally:
                # the webui does this after a complete run only, and not if an exception stops the sampler
                sampling_cleanup(unet)

    def _patch(self, p: Any, anchor: Tensor, noise: Tensor) -> None:
        # this call is needed even if the ratio is 0, because in Forge Neo it also applies the setting Epsilon Scaling
        sd_models.apply_token_merging(p.sd_model, p.get_token_merging_ratio())
        if p.scripts is not None:
            cond, uncond = p.get_conds()
            p.scripts.process_before_every_sampling(p, x=anchor, noise=noise, c=cond, uc=uncond)

    def attach(self, denoiser: Any, parts: StageParts) -> None:
        unet = denoiser.inner_model.inner_model.forge_objects.unet
        control = None
        if unet.controlnet_linked_list is not None:
            control = ViewControl(unet.controlnet_linked_list, parts.run.stage, parts.plan)
            unet.controlnet_linked_list = control
        model = parts.p.sd_model
        vectors = vectors_of(model, parts.frame, self.family(model).sized)
        inner, predictor = unet.model_options.get(WRAPPER), predictor_of(unet.model)
        unet.set_model_unet_function_wrapper(FusedUnet(parts, predictor, vectors, control, inner))
        attach_denoiser(denoiser, parts)


def predictor_of(model: Any) -> Any:
    """Returns the object with the noise schedule of a model. `model` is the attribute `model` of the patched UNet.

    The object also converts the UNet's output to the prediction of the clean latent.
    """
    return model.predictor if hasattr(model, "predictor") else model.model_sampling


def adds_noise(predictor: Any) -> bool:
    """Returns whether the model's input x is the latent plus scaled noise. Returns False for flow matching.

    In flow matching, the latent in x is scaled down. The class of a model does not show whether the model was trained
    for flow matching: Forge Neo uses the class StableDiffusionXL for SDXL and for rectified-flow SDXL.
    """
    level, nothing, latent = torch.full((1,), 0.5), torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    return bool((predictor.noise_scaling(level, nothing, latent) == latent).all())


def set_shift(p: Any) -> None:
    """Sets the shift of a flow model's schedule to its value in the base pass. A hires pass changes the shift.

    In newer versions of Forge Neo, some engines also derive the shift from the size of the image. This function passes
    the requested size and not the size of the stage, because the model evaluates views of about the requested size.
    """
    set_of_host = getattr(p.sd_model, "set_shift", None)
    if set_of_host is not None:
        sizes = {"width": p.width, "height": p.height}
        known = inspect.signature(set_of_host).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
            sizes = {name: size for name, size in sizes.items() if name in known}
        set_of_host(shift=p.distilled_cfg_scale, **sizes)


@contextmanager
def schedule_of_base(model: Any) -> Iterator[None]:
    """Sets the noise levels of the base pass during the block.

    The webui changes the noise levels only for zero terminal SNR, and restores the original levels after the base pass.
    The user can enable zero terminal SNR in the settings, or the checkpoint can require it.
    """
    asked = getattr(shared.opts, "sd_noise_schedule", "Default") == ZERO_TERMINAL
    config = getattr(model, "model_config", None)
    if not (asked or getattr(config, "ztsnr", False) or getattr(model, "ztsnr", False)):
        yield
        return
    predictor = predictor_of(model.forge_objects.unet.model)
    before = predictor.sigmas
    predictor.set_sigmas(processing.rescale_zero_terminal_snr_sigmas(before).to(before.device))
    try:
        yield
    finally:
        predictor.set_sigmas(before)


@contextmanager
def forget_encoded_images(model: Any) -> Iterator[None]:
    """Removes from the model, at the end of the block, the images that the block has encoded.

    Models for image editing store every image that they encode. Without this function, the next job would use the
    images of the block as reference images. Images that were stored before the block are kept.
    """
    arguments = forge_refusals.dynamic_args
    own = {name: getattr(model, name) for name in STORED_IMAGES if hasattr(model, name)}
    lists = {name: list(value) for name, value in own.items() if isinstance(value, list)}
    shown = list(getattr(arguments, "ref_latents", None) or ())
    try:
        yield
    finally:
        for name, value in own.items():
            if name in lists:
                value[:] = lists[name]
            setattr(model, name, value)
        if arguments is not None and hasattr(arguments, "ref_latents"):
            arguments.ref_latents = shown


def reserve_for_views(unet: Any, view: tuple[int, ...], views: int) -> None:
    """Makes the webui reserve memory for a batch of views instead of the whole latent.

    `view` is the shape of one view in the webui, without the batch axis. The model never evaluates the whole latent. If
    the webui reserved memory for the whole latent, it could unload weights of the model, and load them again in every
    model call.
    """

    def memory_of_views(shape: list[int], *args: Any, **kwargs: Any) -> float:
        batch = [shape[0] * views, *view]
        return whole(batch, *args, **kwargs)

    whole = unet.model_options.get(ESTIMATE, unet.memory_required)
    # Forge and reForge call the function in the option, and Forge Neo calls the method
    unet.model_options[ESTIMATE] = memory_of_views
    unet.memory_required = memory_of_views


def attach_denoiser(denoiser: Any, parts: StageParts) -> None:
    """Makes `denoiser` call `StageRun.before_call` before each model call.

    `denoiser` is the CFGDenoiser of the sampler that was created for this stage. The denoiser then also
    resizes its image conditioning, and reduces the size of the latent for the live preview.
    """
    cls = type(denoiser)
    run, form = parts.run, parts.form

    class StageDenoiser(cls):  # type: ignore[misc, valid-type]
        def forward(self, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if run.detector.copies_x:
                # the blend must change only the model's input, because the sampler still needs the unblended tensor: it
                # subtracts the prediction from this tensor
                x = x.clone()
            latent = form.to_method(x)
            run.before_call(latent, sigma[0], x)
            if form.copies:
                x.copy_(form.to_host(latent))
            if kwargs.get("image_cond") is not None:
                kwargs["image_cond"] = image_cond_at(kwargs["image_cond"], x)
            result = super().forward(x, sigma, *args, **kwargs)
            if self.sampler.last_latent is not None:
                # the webui decodes a preview in one piece while the model runs. A large preview could need more memory
                # than is free
                shared.state.current_latent = for_preview(self.sampler.last_latent)
            return result

    denoiser.__class__ = StageDenoiser


def image_cond_at(cond: Any, x: Tensor) -> Any:
    """Resizes an image conditioning (B, C, h, w) to the size of x, because the webui ignores any other size.

    The sizes differ only in txt2img. There, the conditioning marks the whole image as masked, and still does so after
    it is resized.
    """
    if not isinstance(cond, Tensor) or cond.ndim != x.ndim or cond.shape[-2:] in (x.shape[-2:], (1, 1)):
        return cond
    return F.interpolate(cond, x.shape[-2:], mode="nearest")
