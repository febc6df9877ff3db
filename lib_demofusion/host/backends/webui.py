"""The backend for AUTOMATIC1111's webui."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from modules import devices, script_callbacks, sd_models, sd_samplers_cfg_denoiser, shared
from modules.sd_samplers_cfg_denoiser import CFGDenoiser
from torch import Tensor

from lib_demofusion.host.backends import extra_networks, webui_denoiser
from lib_demofusion.host.backends import webui_controlnet as controlnet
from lib_demofusion.host.backends.families import SD, Family, family_of, unknown
from lib_demofusion.host.backends.interface import StageParts
from lib_demofusion.host.common import replaced
from lib_demofusion.method.plan import StagePlan


class Webui:
    """The backend for AUTOMATIC1111's webui.

    CFGDenoiser calls the model through a wrapper, such as CompVisDenoiser of k-diffusion. A stage replaces this wrapper
    by a FusedModel.
    """

    def is_known(self) -> bool:
        # a webui that defines `sampling_function` does not call the model through `CFGDenoiser.inner_model`
        return hasattr(CFGDenoiser, "inner_model") and not hasattr(sd_samplers_cfg_denoiser, "sampling_function")

    def family(self, model: Any) -> Family:
        known = family_of(model)
        # the webui calls a model with these attributes through another wrapper, which a stage cannot replace
        if known is None and (getattr(model, "is_flux", False) or hasattr(model, "create_denoiser")):
            return unknown(model)
        return known or SD

    def is_pending(self) -> bool:
        # this webui loads a checkpoint as soon as you select it
        return False

    def pending_family(self) -> Family | None:
        return None

    def encoding(self, p: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def unet(self, model: Any) -> Any:
        return getattr(getattr(model, "model", None), "diffusion_model", None)

    def fp32_flags(self) -> tuple[str, str]:
        return "--upcast-sampling or --no-half", "--no-half-vae"

    def refusal(self, p: Any) -> str | None:
        return controlnet.refusal(p)

    @contextmanager
    def base_checkpoint(self, p: Any, checkpoint: Any) -> Iterator[None]:
        """Loads the base pass's checkpoint if another one is loaded, and disables the refiner during the block.

        After a base pass with a refiner, the refiner is loaded. After a hires pass with a checkpoint of its own, that
        checkpoint is loaded. If a checkpoint is loaded here, the prompts are also encoded again.
        """
        with replaced(p, refiner_checkpoint_info=None):
            if shared.sd_model.sd_checkpoint_info != checkpoint:
                with sd_models.SkipWritingToConfig():
                    sd_models.reload_model_weights(info=checkpoint)
                extra_networks.activate(p)
                p.setup_conds()
                controlnet.mark_prompts(p)
            else:
                extra_networks.activate_after_hires_pass(p)
            yield

    def sampling(
        self, p: Any, stage: StagePlan, views: int, anchor: Tensor, noise: Tensor
    ) -> AbstractContextManager[None]:
        return sampling_precision()

    def attach(self, denoiser: Any, parts: StageParts) -> None:
        hints = controlnet.stage_hints(parts.p, parts.run.stage, parts.plan)
        webui_denoiser.attach(denoiser, parts, repeated_images, hints)


def sampling_precision() -> Any:
    """Returns the context that the webui uses for sampling (modules/processing.py).

    A stage must enter it again, because the webui leaves this context before it calls the hook `post_sample`.
    """
    return devices.without_autocast() if devices.unet_needs_upcast else devices.autocast()


def repeated_images(cls: type, x: Tensor, cond: Any) -> int:
    """Returns B if the rows of a model call are the B images of x, repeated in the same order. Otherwise, returns 0.

    CFGDenoiser creates the rows of a model call from x (B, C, H, W). There is one row for each prompt of each image,
    and then one row per image for the uncond. If each image has one prompt, the first B rows equal x, and the last B
    rows equal x too. If B is 1, all rows equal x.

    An extension could change single rows. The function therefore returns 0 if an extension has replaced `forward` of
    the denoiser's class `cls`, or if the webui has a callback for CFGDenoiser.
    """
    forward = getattr(cls, "forward", None)
    if getattr(forward, "__globals__", {}).get("__name__") != CFGDenoiser.__module__:
        return 0
    if script_callbacks.callback_map["callbacks_cfg_denoiser"]:
        return 0
    prompts = getattr(cond, "batch", None)
    one_each = prompts is not None and all(len(of_image) == 1 for of_image in prompts)
    return len(x) if one_each or len(x) == 1 else 0
