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
    """The objects of one stage that are needed between the webui's sampler and its model."""

    p: Any
    """The webui's request."""
    run: StageRun
    plan: Plan | None
    """The plan that the stage belongs to. If None, the stage shows the whole base image."""
    batches: ViewBatches
    frame: Frame
    before_batch: Callable[[float], None]
    """Called before each batch with its number of cells, averaged over the rows of the call."""
    form: LatentForm = PLAIN
    """Converts latents between the axes of the webui and those of the method."""
    apart: str = ""
    """The error to raise if cond and uncond come in separate model calls. Empty if separate calls are allowed."""


class Backend(Protocol):
    """One kind of webui."""

    def is_known(self) -> bool:
        """Returns whether the webui has the functions that this backend calls."""
        ...

    def family(self, model: Any) -> Family:
        """Returns the family of a loaded model. `model` can be None or a dummy if no model is loaded yet."""
        ...

    def is_pending(self) -> bool:
        """Returns whether the selected checkpoint differs from the loaded one. The webui loads it when a job begins."""
        ...

    def pending_family(self) -> Family | None:
        """Returns the family of the selected checkpoint while `is_pending`, or None if it is not recognized."""
        ...

    def encoding(self, p: Any) -> AbstractContextManager[None]:
        """Runs a block that encodes images, and removes the data that the encoder stores in the model."""
        ...

    def unet(self, model: Any) -> Any:
        """Returns the denoising network of a loaded model (a torch module), or None if there is none."""
        ...

    def fp32_flags(self) -> tuple[str, str]:
        """Returns the command-line flags that run the model and the VAE in single precision."""
        ...

    def refusal(self, p: Any) -> str | None:
        """Returns the built-in feature or ControlNet unit that does not work with the stages, and why, or None."""
        ...

    def base_checkpoint(self, p: Any, checkpoint: Any) -> AbstractContextManager[None]:
        """Runs a block with the base pass's checkpoint and prompts. Raises RuntimeError if it cannot restore them."""
        ...

    def sampling(
        self, p: Any, stage: StagePlan, views: int, anchor: Tensor, noise: Tensor
    ) -> AbstractContextManager[None]:
        """Prepares the model for a stage and restores it afterwards. `views` is the batch size, 0 for automatic."""
        ...

    def attach(self, denoiser: Any, parts: StageParts) -> None:
        """Changes the CFGDenoiser of the stage's own sampler so that it evaluates views."""
        ...
