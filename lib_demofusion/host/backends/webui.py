"""AUTOMATIC1111's webui."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from modules import sd_models, sd_samplers_cfg_denoiser, shared
from modules.sd_samplers_cfg_denoiser import CFGDenoiser
from torch import Tensor

from lib_demofusion.host.backends import networks, webui_denoiser
from lib_demofusion.host.backends import webui_controlnet as controlnet
from lib_demofusion.host.backends.families import SD, Family, family_of, unknown
from lib_demofusion.host.backends.interface import StageParts
from lib_demofusion.host.backends.webui_rows import repeated_images
from lib_demofusion.host.common import precision
from lib_demofusion.host.common.scoped import replaced
from lib_demofusion.method.plan import StagePlan


class Webui:
    """The backend of AUTOMATIC1111's webui. A stage replaces the wrapper through which CFGDenoiser calls the model."""

    def is_known(self) -> bool:
        # webuis with their own guidance function do not call the wrapper
        return hasattr(CFGDenoiser, "inner_model") and not hasattr(sd_samplers_cfg_denoiser, "sampling_function")

    def family(self, model: Any) -> Family:
        known = family_of(model)
        # a model that creates its own denoiser is sampled differently
        if known is None and (getattr(model, "is_flux", False) or hasattr(model, "create_denoiser")):
            return unknown(model)
        return known or SD

    def is_pending(self) -> bool:
        # this webui loads a checkpoint as soon as it is selected
        return False

    def encoding(self, p: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def unet(self, model: Any) -> Any:
        return getattr(getattr(model, "model", None), "diffusion_model", None)

    def refusal(self, p: Any) -> str | None:
        return controlnet.refusal(p)

    @contextmanager
    def base_checkpoint(self, p: Any, checkpoint: Any) -> Iterator[None]:
        """Reloads the base pass's checkpoint if needed, and disables the refiner during the block.

        Another model is still loaded if the base pass used the refiner or the hires pass used its own checkpoint.
        """
        with replaced(p, refiner_checkpoint_info=None):
            if shared.sd_model.sd_checkpoint_info != checkpoint:
                with sd_models.SkipWritingToConfig():
                    sd_models.reload_model_weights(info=checkpoint)
                networks.activate(p)
                p.setup_conds()
                controlnet.mark_prompts(p)
            else:
                networks.activate_after_hires_pass(p)
            yield

    def sampling(
        self, p: Any, stage: StagePlan, views: int, anchor: Tensor, noise: Tensor
    ) -> AbstractContextManager[None]:
        return precision.sampling()

    def attach(self, denoiser: Any, parts: StageParts) -> None:
        hints = controlnet.stage_hints(parts.p, parts.run.stage, parts.plan)
        webui_denoiser.attach(denoiser, parts, repeated_images, hints)
