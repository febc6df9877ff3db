"""Stand-in: classifier-free guidance around the model, in the class that extensions derive from."""

from typing import Any

import torch
from modules import sd_samplers_common
from modules.shared import state
from torch import Tensor


class CFGDenoiser(torch.nn.Module):
    """The model of a sampling function: maps (x, noise level, conds) to the guided prediction."""

    def __init__(self, sampler: Any):
        super().__init__()
        self.model_wrap: Any = None
        self.mask: Tensor | None = None
        self.nmask: Tensor | None = None
        self.init_latent: Tensor | None = None
        self.steps: int | None = None
        self.total_steps: int | None = None
        self.step = 0
        self.sampler = sampler
        self.p: Any = None
        self.mask_before_denoising = False

    @property
    def inner_model(self) -> Any:
        """The wrapper that predicts without guidance."""
        raise NotImplementedError

    def combine_denoised(self, x_out: Tensor, conds_list: Any, uncond: Tensor, cond_scale: float) -> Tensor:
        """Returns the guided prediction from cond rows followed by uncond rows."""
        without = x_out[-uncond.shape[0] :]
        result = without.clone()
        for row, conds in enumerate(conds_list):
            for index, weight in conds:
                result[row] += (x_out[index] - without[row]) * (weight * cond_scale)
        return result

    def get_pred_x0(self, x_in: Tensor, x_out: Tensor, sigma: Tensor) -> Tensor:
        """Returns the clean latent of a prediction."""
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
        """Returns the guided prediction for x (B, C, H, W) at noise levels (B,). Conds and unconds are one batch."""
        if state.interrupted or state.skipped:
            raise sd_samplers_common.InterruptedException
        x_in, sigma_in, image_in = (torch.cat([value, value]) for value in (x, sigma, image_cond))
        cond_in = {"c_crossattn": [torch.cat([cond, uncond])], "c_concat": [image_in]}
        x_out = self.inner_model(x_in, sigma_in, cond=cond_in)
        conds_list = [[(row, 1.0)] for row in range(len(x))]
        denoised = self.combine_denoised(x_out, conds_list, uncond, cond_scale)
        self.sampler.last_latent = self.get_pred_x0(x, x_out[: len(x)], sigma)
        sd_samplers_common.store_latent(self.get_pred_x0(x, denoised, sigma))
        self.step += 1
        return denoised
