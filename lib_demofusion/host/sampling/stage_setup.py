"""Chooses the steps of a stage and the number of views per model call, and predicts the number of model calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modules import devices, sd_samplers_common, sd_unet, shared

from lib_demofusion.host.common import options
from lib_demofusion.host.common.memory import device_memory
from lib_demofusion.host.progress import timing
from lib_demofusion.method.batching import ViewBatches
from lib_demofusion.method.costs import ADAPTIVE_CALLS, CallsAhead, calls_ahead, calls_of_whole, model_calls
from lib_demofusion.method.filters import preview_size
from lib_demofusion.method.schedule import StageSteps, least_steps, schedule_steps, steps_by_level, steps_by_share
from lib_demofusion.method.views import Size
from lib_demofusion.settings.fields import Settings
from lib_demofusion.tiled_vae.feature_maps import item_bytes
from lib_demofusion.tiled_vae.layers import decoder_layers
from lib_demofusion.tiled_vae.memory import whole_bytes


def stage_steps(p: Any, sampler: Any, name: str, settings: Settings, flow: bool) -> StageSteps:
    """Returns the number of steps in a stage's schedule and the number of its last steps that the stage runs.

    `sampler` is a sampler of the webui, and `name` is the name of its sampling function. If `flow` is True, the model
    is a flow model, and the denoising strength determines the noise level at which the stage begins. For other models,
    the denoising strength determines the share of the steps that run.
    """
    least = least_steps(name, getattr(shared.opts, "uni_pc_order", 1))
    steps, strength = schedule_steps(p.steps, settings), settings.denoising_strength
    if not flow:
        return steps_by_share(steps, strength, least)

    def levels(length: int) -> list[float]:
        found: list[float] = sampler.get_sigmas(p, length).tolist()
        return found

    return steps_by_level(steps, strength, least, levels)


class CallsOfStage:
    """Predicts the number of model calls of a stage's sampling function from the function's arguments.

    For DPM adaptive, the number depends on the image. In a test with a trained model, DPM adaptive made 57 calls in the
    base pass and 126 calls in a stage, because its steps become shorter with dilated views and the skip residual. The
    estimate for a whole schedule is therefore the number of calls in the base pass times a ratio. The ratio comes from
    the latest stage that used this checkpoint and DPM adaptive. If there was no such stage, the ratio is 1.
    """

    def __init__(self, p: Any, name: str, arguments: Mapping[str, Any], second_order: bool):
        self._model, self._arguments = p.sd_model, arguments
        self._is_known = model_calls(name, arguments, second_order) is not None
        self._of_base = _calls_of_base(p) or ADAPTIVE_CALLS
        ratio = 1.0 if self._is_known else timing.known(self._model, timing.ADAPTIVE_RATIO) or 1.0
        self.ahead: CallsAhead = calls_ahead(name, arguments, second_order, ratio * self._of_base)

    def learn(self, calls: int) -> None:
        """Stores the ratio if the sampler is DPM adaptive. `calls` is the number of model calls that the stage made."""
        if not self._is_known and "sigma_max" in self._arguments:
            timing.learn(self._model, timing.ADAPTIVE_RATIO, calls_of_whole(calls, self._arguments) / self._of_base)


def _calls_of_base(p: Any) -> int:
    """Returns the number of model calls in the last pass before the stages, or 0 if the number is unknown."""
    return getattr(getattr(p.sampler, "model_wrap_cfg", None), "step", 0)


FULL = 0
"""The index of the live preview method "Full", which decodes with the VAE (approximation_indexes in the webui)."""


def view_batches(p: Any, settings: Settings, size: Size) -> ViewBatches:
    """Chooses the number of views per model call for a stage of `size` cells.

    The request can contain the number. If it does not, the number is the option on the settings page. If that is 0,
    `ViewBatches` chooses the number from the free memory. If the setting "SD Unet" has replaced the checkpoint's UNet,
    for example by TensorRT, the number is 1, because the replacement supports only the batch size of the base image.
    """
    if sd_unet.current_unet is not None:
        return ViewBatches(1)
    views = settings.view_batch or options.value(options.VIEW_BATCH, 0)
    return ViewBatches(views, device_memory(preview_bytes(p.sd_model, size)))


def preview_bytes(sd_model: Any, size: Size) -> int:
    """Estimates the device memory, in bytes, that live previews of a latent of `size` cells need beside the model.

    The webui decodes a preview in a separate thread (modules/shared_state.py, set_current_image), one image at a time.
    Returns 0 if the VAE does not decode while the model runs, or if the layers of the VAE are unknown.
    """
    if not _previews_run_beside_model():
        return 0
    try:
        layers = decoder_layers(sd_model.first_stage_model.decoder)
    except (AttributeError, ValueError):
        return 0
    return whole_bytes(layers, preview_size(size), item_bytes(devices.dtype_vae))


def _previews_run_beside_model() -> bool:
    """Returns whether the VAE decodes live previews while the model runs.

    With --medvram and --lowvram, the webui decodes previews between two model calls. If the webui's setting for the
    interval of previews is -1 steps, the webui shows a preview only when a job ends.
    """
    opts = shared.opts
    if not opts.live_previews_enable or getattr(opts, "show_progress_every_n_steps", 1) == -1:
        return False
    if not getattr(shared, "parallel_processing_allowed", True):
        return False
    method = getattr(opts, "show_progress_type", "Full")
    return sd_samplers_common.approximation_indexes.get(method, FULL) == FULL
