"""Defines the functions of a webui that the stages need. There is one implementation for AUTOMATIC1111's webui and one
for Forge's family.
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
    """The objects of one stage that are needed between the webui's sampler and the model."""

    p: Any
    """The webui's request."""
    run: StageRun
    plan: Plan | None
    """The plan that the stage belongs to. If None, the stage shows the whole base image."""
    batches: ViewBatches
    frame: Frame
    before_batch: Callable[[float], None]
    """Called before each batch of views with its number of cells, divided by the number of rows of the model call."""
    form: LatentForm = PLAIN
    """Converts latents between the shapes that the webui and `method` use."""
    apart: str = ""
    """The error to raise if cond and uncond come in separate model calls. Empty if separate calls are allowed."""


class Backend(Protocol):
    """The functions of one kind of webui."""

    def is_known(self) -> bool:
        """Returns whether the webui has the functions that this backend calls."""
        ...

    def family(self, model: Any) -> Family:
        """Returns the family of a loaded model. `model` can be None or a dummy if no model is loaded yet."""
        ...

    def is_pending(self) -> bool:
        """Returns whether the selected checkpoint is not loaded yet. The webui then loads it when a job begins."""
        ...

    def pending_family(self) -> Family | None:
        """Returns the family of the selected checkpoint while `is_pending`, or None if it is not recognized."""
        ...

    def encoding(self, p: Any) -> AbstractContextManager[None]:
        """Returns a context for encoding images. Its end removes the data that encoding has stored in the model."""
        ...

    def unet(self, model: Any) -> Any:
        """Returns the denoising network of a loaded model (a torch module), or None if there is none."""
        ...

    def fp32_flags(self) -> tuple[str, str]:
        """Returns the command-line flags that run the model and the VAE in single precision."""
        ...

    def refusal(self, p: Any) -> str | None:
        """Returns the name of a feature or unit that does not work with the stages, and the reason, or None.

        The checks cover features of this webui and units of ControlNet.
        """
        ...

    def base_checkpoint(self, p: Any, checkpoint: Any) -> AbstractContextManager[None]:
        """Returns a context that restores the checkpoint and the prompts of the base pass.

        Entering it raises RuntimeError if the webui cannot load the checkpoint again.
        """
        ...

    def sampling(
        self, p: Any, stage: StagePlan, views: int, anchor: Tensor, noise: Tensor
    ) -> AbstractContextManager[None]:
        """Returns a context that prepares the model for a stage and restores it at the end.

        `views` is the number of views per model call, or 0 if it is chosen automatically.
        """
        ...

    def attach(self, denoiser: Any, parts: StageParts) -> None:
        """Changes the CFGDenoiser of the stage's own sampler so that it evaluates views."""
        ...
