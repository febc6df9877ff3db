"""Defines the functions that differ between webuis.

`webui.Webui` implements them for AUTOMATIC1111's webui, and `forge.Forge` for Forge's family.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from lib_demofusion.host.backends.families import PLAIN, Family, LatentForm
from lib_demofusion.method.batching import ViewBatches
from lib_demofusion.method.conditioning import Frame
from lib_demofusion.method.plan import Plan, StagePlan
from lib_demofusion.method.stage import StageRun


@dataclass(frozen=True)
class StageParts:
    """The objects that a backend needs to evaluate the model on views during one stage."""

    p: Any
    """The webui's object for the current job (StableDiffusionProcessing)."""
    run: StageRun
    """The run of the sampler for this stage. The backend passes every model call to it."""
    plan: Plan | None
    """The plan of all stages. Its crop is the part of the base image that the stages enlarge. None means no crop."""
    batches: ViewBatches
    frame: Frame
    before_batch: Callable[[float], None]
    """The function that reports progress, and that ends the stage if the user has asked to stop.

    The backend calls it before each batch of views. The argument is the number of latent cells of all rows in the
    batch, divided by the number of rows in the sampler's model call. A row is a cond or the uncond of one image.
    """
    form: LatentForm = PLAIN
    """Converts latents between the shape in the webui and the shape in `method`."""
    separate_calls_error: str = ""
    """The text of the error to raise if a model call has other rows than one cond and one uncond per image.

    Empty if no extension needs such calls.
    """


class Backend(Protocol):
    """The functions that differ between webuis."""

    def is_known(self) -> bool:
        """Returns whether this backend knows how the webui calls its model."""
        ...

    def family(self, model: Any) -> Family:
        """Returns the family of a loaded model.

        If no model is loaded, `model` is None or the webui's placeholder, and the result is Stable Diffusion.
        """
        ...

    def is_pending(self) -> bool:
        """Returns whether the webui will load the selected checkpoint only when the next job begins."""
        ...

    def pending_family(self) -> Family | None:
        """Returns the family of the selected checkpoint if `is_pending` returns True, else None.

        Also returns None if the file of the checkpoint is not recognized.
        """
        ...

    def encoding(self, p: Any) -> AbstractContextManager[None]:
        """Returns a context for encoding images.

        Some models for image editing store every image that they encode, to use it as a reference image. At its end,
        the context removes these stored images.
        """
        ...

    def unet(self, model: Any) -> Any:
        """Returns the torch module that is or contains the denoising network of a loaded model, or None without one."""
        ...

    def fp32_flags(self) -> tuple[str, str]:
        """Returns the command-line flags that prevent NaN, one text for the model and one text for the VAE.

        Error messages contain these texts. A text can name several flags, such as "--upcast-sampling or --no-half".
        """
        ...

    def refusal(self, p: Any) -> str | None:
        """Returns why the stages cannot run in this job, or None.

        The text begins with the name of the feature that conflicts, such as the refiner, a ControlNet unit, the
        sampler or the patch of another extension. Each webui has checks of its own.
        """
        ...

    def base_checkpoint(self, p: Any, checkpoint: Any) -> AbstractContextManager[None]:
        """Returns a context in which the checkpoint and the extra networks of the base pass are active.

        `checkpoint` is the webui's CheckpointInfo of the checkpoint that the base pass used. If another checkpoint is
        loaded now, the backend for AUTOMATIC1111's webui loads `checkpoint` again. The backend for Forge's family
        raises RuntimeError instead when the context is entered.
        """
        ...

    def sampling(
        self, p: Any, stage: StagePlan, views: int, anchor: Tensor, noise: Tensor
    ) -> AbstractContextManager[None]:
        """Returns a context that prepares the model for a stage, and at its end undoes the changes.

        `views` is the number of views per model call, or 1 if this number is automatic. `anchor` and `noise` are
        latents (B, C, H, W) in the shape that `method` uses.
        """
        ...

    def attach(self, denoiser: Any, parts: StageParts) -> None:
        """Changes `denoiser`, the CFGDenoiser of the sampler that was created for this stage, to evaluate views."""
        ...
