"""Forge's family: Forge, Forge Neo, reForge."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from modules import processing, sd_models, shared
from torch import Tensor

from lib_demofusion.host.backends import (
    forge_denoiser,
    forge_integrations,
    forge_samplers,
    forge_transformers,
    networks,
)
from lib_demofusion.host.backends.families import SD, Family, family_of, unknown
from lib_demofusion.host.backends.forge_hints import Held
from lib_demofusion.host.backends.forge_integrations import WRAPPER
from lib_demofusion.host.backends.forge_unet import FusedUnet
from lib_demofusion.host.backends.interface import StageParts
from lib_demofusion.host.common.scoped import replaced
from lib_demofusion.method.plan import StagePlan
from lib_demofusion.method.size_vectors import CROP, SIZES, Frame, SizeVectors, size_vectors

try:
    from backend.sampling.sampling_function import sampling_cleanup
except ImportError:
    try:
        from modules_forge.forge_sampler import sampling_cleanup
    except ImportError:
        sampling_cleanup = None

ESTIMATE = "memory_peak_estimation_modifier"
"""Where a patched UNet says itself how much memory it takes (backend/patcher/unet.py)."""

SIZED = ("original_size_as_tuple", CROP, "target_size_as_tuple")
"""The order of the sizes in SDXL's vector (backend/diffusion_engine/sdxl.py)."""

ZERO_TERMINAL = "Zero Terminal SNR"
"""The choice of the setting for noise schedules (modules/processing.py)."""

CHANNELS = 256
"""Columns of one embedded number there."""


class Forge:
    """Its guidance asks the UNet that the checkpoint's `forge_objects` hold at the time, which patches are made of."""

    def is_known(self) -> bool:
        return sampling_cleanup is not None

    def family(self, model: Any) -> Family:
        # before a model is loaded there is a dummy
        if not hasattr(model, "forge_objects"):
            return SD
        # reForge calls it otherwise: there a job before may have left a flow schedule, which `refusal` names
        predictor = getattr(model.forge_objects.unet.model, "predictor", None)
        flow = predictor is not None and not adds_noise(predictor)
        return family_of(model, flow) or unknown(model)

    def is_pending(self) -> bool:
        # of Forge and Forge Neo; reForge loads a checkpoint as soon as it is chosen
        data = sd_models.model_data
        chosen = getattr(data, "forge_loading_parameters", None)
        return bool(chosen) and str(chosen) != data.forge_hash

    def encoding(self, p: Any) -> AbstractContextManager[None]:
        return forge_transformers.nothing_kept(p.sd_model)

    def unet(self, model: Any) -> Any:
        objects = getattr(model, "forge_objects", None)
        return getattr(getattr(objects, "unet", None), "model", None)

    def refusal(self, p: Any) -> str | None:
        family = self.family(p.sd_model)
        return forge_integrations.refusal(p, family) or forge_samplers.problem(p, family.flow)

    @contextmanager
    def base_checkpoint(self, p: Any, checkpoint: Any) -> Iterator[None]:
        if shared.sd_model.sd_checkpoint_info != checkpoint:
            raise RuntimeError("another checkpoint than the base image's is loaded, and this webui has no way back")
        set_shift(p)
        networks.activate_after_hires_pass(p)
        with schedule_of_base(p.sd_model):
            yield

    @contextmanager
    def sampling(self, p: Any, stage: StagePlan, views: int, anchor: Tensor, noise: Tensor) -> Iterator[None]:
        """Patches a UNet of the stage's own, as the host does for each pass (modules/processing.py)."""
        model = p.sd_model
        # inpainting draws noise from the generator that is nobody's own
        torch.manual_seed(int(p.seeds[0]) + stage.number)
        with replaced(model, forge_objects=model.forge_objects_after_applying_lora.shallow_copy()):
            family = self.family(model)
            form = family.form
            self._patch(p, form.to_host(anchor), form.to_host(noise))
            unet = model.forge_objects.unet.clone()
            forge_integrations.check_patches(unet, family)
            reserve_for_views(unet, form.host_shape(anchor.shape[1], stage.window), max(views, 1))
            model.forge_objects.unet = unet
            try:
                yield
            finally:
                # a sampler that was stopped has not come to it
                sampling_cleanup(unet)

    def _patch(self, p: Any, anchor: Tensor, noise: Tensor) -> None:
        # with a ratio of 0 too: Forge Neo also applies its Epsilon Scaling here
        sd_models.apply_token_merging(p.sd_model, p.get_token_merging_ratio())
        if p.scripts is not None:
            cond, uncond = p.get_conds()
            p.scripts.process_before_every_sampling(p, x=anchor, noise=noise, c=cond, uc=uncond)

    def attach(self, denoiser: Any, parts: StageParts) -> None:
        unet = denoiser.inner_model.inner_model.forge_objects.unet
        held = None
        if unet.controlnet_linked_list is not None:
            held = Held(unet.controlnet_linked_list, parts.run.stage, parts.plan)
            unet.controlnet_linked_list = held
        model = parts.p.sd_model
        vectors = vectors_of(model, parts.frame, self.family(model).sized)
        inner, predictor = unet.model_options.get(WRAPPER), predictor_of(unet.model)
        unet.set_model_unet_function_wrapper(FusedUnet(parts, predictor, vectors, held, inner))
        forge_denoiser.attach(denoiser, parts)


def predictor_of(model: Any) -> Any:
    """Returns the schedule of a UNet, which turns its output into the clean latent."""
    return model.predictor if hasattr(model, "predictor") else model.model_sampling


def adds_noise(predictor: Any) -> bool:
    """Returns whether noise is added to the whole latent, as the skip residual takes it to be.

    Flow matching mixes the two. Some UNets of SDXL's shape are trained so (Mugen in Forge Neo), and called SDXL there.
    """
    level, nothing, latent = torch.full((1,), 0.5), torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    return bool((predictor.noise_scaling(level, nothing, latent) == latent).all())


def set_shift(p: Any) -> None:
    """Gives a flow model's schedule the shift of the base pass; a hires pass leaves its own behind.

    Some engines of newer versions of Forge Neo derive it from the image's size too; a view has the base's.
    """
    set_of_host = getattr(p.sd_model, "set_shift", None)
    if set_of_host is not None:
        sizes = {"width": p.width, "height": p.height}
        known = inspect.signature(set_of_host).parameters
        set_of_host(shift=p.distilled_cfg_scale, **{name: size for name, size in sizes.items() if name in known})


@contextmanager
def schedule_of_base(model: Any) -> Iterator[None]:
    """Runs a block on the noise levels of the base pass: the host has put back those of the file by `post_sample`.

    Without signal at the first step ("Zero Terminal SNR", or a checkpoint that says so itself) they are others.
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


def reserve_for_views(unet: Any, view: tuple[int, ...], views: int) -> None:
    """Makes the host reserve the memory of a batch of views, each of the shape `view`, not of the whole latent.

    For the whole latent it would unload the weights, and most of a stage would be spent on loading them again.
    """

    def memory_of_views(shape: list[int], *args: Any, **kwargs: Any) -> float:
        batch = [shape[0] * views, *view]
        return whole(batch, *args, **kwargs)

    whole = unet.model_options.get(ESTIMATE, unet.memory_required)
    # the one is what Forge and reForge ask, the other what Neo asks
    unet.model_options[ESTIMATE] = memory_of_views
    unet.memory_required = memory_of_views


class _Numbers:
    """The host's embedding of one number, under a name that says which pair of numbers is embedded."""

    outdim = CHANNELS

    def __init__(self, embedder: Any, input_key: str):
        self._embedder = embedder
        self.input_key = input_key

    def __call__(self, numbers: Tensor) -> Tensor:
        """Returns the embeddings (n, k * 256) of k numbers each (n, k)."""
        embedded: Tensor = self._embedder(numbers.flatten())
        return embedded.reshape(len(numbers), -1)


def vectors_of(model: Any, frame: Frame, sized: bool) -> SizeVectors | None:
    """Returns the writer of SDXL's sizes for a loaded model, or None if the model receives none (`sized`)."""
    embedder = getattr(model, "embedder", None)
    if embedder is None or not sized:
        return size_vectors(model, frame)
    assert set(SIZED) == {CROP, *SIZES}
    return SizeVectors([_Numbers(embedder, key) for key in SIZED], frame)
