"""Stand-in: the denoiser class, which applies classifier-free guidance to the model's predictions."""

from typing import Any

import torch
from modules import sd_samplers_common
from modules.shared import state
from torch import Tensor


class CFGDenoiser(torch.nn.Module):
    """The model that a sampling function calls. Applies classifier-free guidance to predictions of `inner_model`."""

    def __init__(self, sampler: Any):
        super().__init__()
        self.sampler = sampler
        self.model_wrap: Any = None
        self.init_latent: Tensor | None = None
        self.step = 0

    @property
    def inner_model(self) -> Any:
        """The wrapper that predicts without guidance."""
        raise NotImplementedError

    def get_pred_x0(self, x_in: Tensor, x_out: Tensor, sigma: Tensor) -> Tensor:
        """Converts the prediction `x_out` for `x_in` to a clean latent. In this class, it already is a clean latent."""
        return x_out

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        uncond: Tensor,
        cond: Tensor,
        cond_scale: float,
        s_min_uncond: float,
        image_cond: Tensor,
    ) -> Tensor:
        """Returns the guided prediction for x (B, C, H, W) at noise levels (B,).

        Calls the inner model once, with the rows for `cond` followed by the rows for `uncond`. Raises
        InterruptedException if the user has interrupted the job or skipped the iteration.
        """
        if state.interrupted or state.skipped:
            raise sd_samplers_common.InterruptedException
        x_in, sigma_in, image_in = (torch.cat([value, value]) for value in (x, sigma, image_cond))
        cond_in = {"c_crossattn": [torch.cat([cond, uncond])], "c_concat": [image_in]}
        with_cond, without_cond = self.inner_model(x_in, sigma_in, cond=cond_in).chunk(2)
        denoised = without_cond + (with_cond - without_cond) * cond_scale
        self.sampler.last_latent = self.get_pred_x0(x, with_cond, sigma)
        state.current_latent = self.get_pred_x0(x, denoised, sigma)
        self.step += 1
        return denoised
