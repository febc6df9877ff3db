"""How many views a stage may give the model at once, by what else the webui does with the device."""

from __future__ import annotations

from typing import Any

from modules import devices, sd_samplers_common, sd_unet, shared

from lib_demofusion.host.common import options
from lib_demofusion.host.common.memory import device_memory
from lib_demofusion.method.batching import ViewBatches
from lib_demofusion.method.preview import preview_size
from lib_demofusion.method.views import Size
from lib_demofusion.settings.fields import Settings
from lib_demofusion.tiled_vae.maps import item_bytes
from lib_demofusion.tiled_vae.steps import decoder_steps, whole_bytes

FULL = 0
"""The webui's number of the live preview method that runs the autoencoder itself (approximation_indexes)."""


def view_batches(p: Any, settings: Settings, size: Size) -> ViewBatches:
    """Returns the view batches of a stage of `size` cells: as many views as are asked for, or as the memory holds.

    What takes the place of the checkpoint's UNet (setting "SD Unet", TensorRT) is built for the batch of the base
    image and is given no larger one.
    """
    if sd_unet.current_unet is not None:
        return ViewBatches(1)
    views = settings.view_batch or options.value(options.VIEW_BATCH, 0)
    return ViewBatches(views, device_memory(preview_bytes(p.sd_model, size)))


def preview_bytes(sd_model: Any, size: Size) -> int:
    """Returns about what a live preview of a latent of `size` cells takes on the device while the model runs.

    The page asks for it from a thread of its own (modules/shared_state.py, set_current_image), one image at a time.
    """
    if not _decodes_beside():
        return 0
    try:
        steps = decoder_steps(sd_model.first_stage_model.decoder)
    except (AttributeError, ValueError):
        # an autoencoder of another kind
        return 0
    return whole_bytes(steps, preview_size(size), item_bytes(devices.dtype_vae))


def _decodes_beside() -> bool:
    """Returns whether previews are decoded by the autoencoder, beside the sampling.

    With --medvram and --lowvram they are made between two calls of the model. Every -1 steps means at the end only.
    """
    opts = shared.opts
    if not opts.live_previews_enable or getattr(opts, "show_progress_every_n_steps", 1) == -1:
        return False
    if not getattr(shared, "parallel_processing_allowed", True):
        return False
    method = getattr(opts, "show_progress_type", "Full")
    return sd_samplers_common.approximation_indexes.get(method, FULL) == FULL
