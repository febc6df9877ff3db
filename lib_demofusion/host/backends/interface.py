"""What a webui must do for the stages: one implementation for AUTOMATIC1111's and one for Forge's family."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from lib_demofusion.host.backends.families import Family
from lib_demofusion.host.backends.latent_form import PLAIN, LatentForm
from lib_demofusion.method.batching import ViewBatches
from lib_demofusion.method.plan import Plan, StagePlan
from lib_demofusion.method.size_vectors import Frame
from lib_demofusion.method.stage import StageRun


@dataclass(frozen=True)
class StageParts:
    """What one stage puts between the sampler of the webui and its model."""

    p: Any
    """The webui's request."""
    run: StageRun
    plan: Plan | None
    """The run that the stage belongs to; None where the stage shows the base as a whole."""
    batches: ViewBatches
    frame: Frame
    before_batch: Callable[[float], None]
    """Is told of every batch how many cells it has, as a mean over the rows of the call."""
    form: LatentForm = PLAIN
    """The axes of the model's latents in the webui."""
    apart: str = ""
    """The error to raise when conds and unconds do not come in one call of the model; empty if that does not matter."""


class Backend(Protocol):
    """One kind of webui."""

    def is_known(self) -> bool:
        """Returns whether the webui has what this backend calls."""
        ...

    def family(self, model: Any) -> Family:
        """Returns what a loaded model is; `model` may be None or a dummy if none is loaded yet."""
        ...

    def is_pending(self) -> bool:
        """Returns whether another checkpoint is chosen than the loaded one, which is loaded when a job begins."""
        ...

    def encoding(self, p: Any) -> AbstractContextManager[None]:
        """Runs a block in which images are encoded, and removes the traces that the encoder leaves in the model."""
        ...

    def unet(self, model: Any) -> Any:
        """Returns the network of a loaded model that predicts, a torch module, or None if there is none."""
        ...

    def refusal(self, p: Any) -> str | None:
        """Returns what of the webui's own features and of ControlNet a job cannot run beside, and why, or None."""
        ...

    def base_checkpoint(self, p: Any, checkpoint: Any) -> AbstractContextManager[None]:
        """Runs a block on the checkpoint of the base pass and its prompts; raises where there is no way back to it."""
        ...

    def sampling(
        self, p: Any, stage: StagePlan, views: int, anchor: Tensor, noise: Tensor
    ) -> AbstractContextManager[None]:
        """Prepares the model for a stage that is given so many views at once, 0 for automatic, and tidies up behind."""
        ...

    def attach(self, denoiser: Any, parts: StageParts) -> None:
        """Makes the CFGDenoiser of a sampler that is ours alone run the stage."""
        ...
