"""Informs a stage of every model call by a sampler of Forge's family."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from modules import shared
from torch import Tensor

from lib_demofusion.host.backends.interface import StageParts
from lib_demofusion.method.filters import for_preview


def attach(denoiser: Any, parts: StageParts) -> None:
    """Informs the stage of every call of `denoiser`, the CFGDenoiser of the stage's own sampler."""
    cls = type(denoiser)
    run, form = parts.run, parts.form

    class StageDenoiser(cls):  # type: ignore[misc, valid-type]
        def forward(self, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if run.detector.copies_x:
                # the sampler still needs this tensor for its next x
                x = x.clone()
            latent = form.to_method(x)
            run.before_call(latent, sigma[0], x)
            if form.copies:
                x.copy_(form.to_host(latent))
            if kwargs.get("image_cond") is not None:
                kwargs["image_cond"] = image_cond_at(kwargs["image_cond"], x)
            result = super().forward(x, sigma, *args, **kwargs)
            if self.sampler.last_latent is not None:
                # the host decodes the preview in another thread, in one piece
                shared.state.current_latent = for_preview(self.sampler.last_latent)
            return result

    denoiser.__class__ = StageDenoiser


def image_cond_at(cond: Any, x: Tensor) -> Any:
    """Resizes an image conditioning (B, C, h, w) to the size of x, because the host ignores other sizes.

    A conditioning of another size is that of txt2img, which marks everything as masked. This is true at any size.
    """
    if not isinstance(cond, Tensor) or cond.ndim != x.ndim or cond.shape[-2:] in (x.shape[-2:], (1, 1)):
        return cond
    return F.interpolate(cond, x.shape[-2:], mode="nearest")
