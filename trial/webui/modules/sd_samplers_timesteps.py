"""Stand-in: the sampler DDIM, whose noise levels are timesteps."""

from itertools import pairwise
from typing import Any

import k_diffusion.sampling
import torch
from modules import sd_samplers_cfg_denoiser, sd_samplers_common, shared
from torch import Tensor


@torch.no_grad()
def ddim(
    model: Any,
    x: Tensor,
    timesteps: Tensor,
    extra_args: dict | None = None,
    callback: Any = None,
    disable: bool | None = None,
    eta: float = 0.0,
) -> Tensor:
    """Samples with DDIM (Song et al., 2021, equation 12). The `timesteps` increase, and sampling begins at the last."""
    alphas_cumprod = model.inner_model.inner_model.alphas_cumprod.cpu().double()
    ones = x.new_ones(x.shape[0])
    for i, (t, t_next) in enumerate(pairwise(timesteps.flip(0).tolist())):
        a, a_next = alphas_cumprod[t].item(), alphas_cumprod[t_next].item()
        eps = model(x, t * ones, **(extra_args or {}))
        denoised = (x - (1 - a) ** 0.5 * eps) / a**0.5
        sigma = eta * ((1 - a_next) / (1 - a) * (1 - a / a_next)) ** 0.5
        noise = k_diffusion.sampling.torch.randn_like(x)
        x = a_next**0.5 * denoised + max(1 - a_next - sigma**2, 0.0) ** 0.5 * eps + sigma * noise
        if callback is not None:
            callback({"x": x, "i": i, "sigma": 0, "sigma_hat": 0, "denoised": denoised})
    return x


class CompVisTimestepsDenoiser(torch.nn.Module):
    """Wraps a model that predicts noise. Unlike k-diffusion's wrapper, it returns the noise and not a clean latent."""

    def __init__(self, model: Any):
        super().__init__()
        self.inner_model = model

    def forward(self, input: Tensor, timesteps: Tensor, **kwargs: Any) -> Tensor:
        return self.inner_model.apply_model(input, timesteps, **kwargs)


class CFGDenoiserTimesteps(sd_samplers_cfg_denoiser.CFGDenoiser):
    """A denoiser whose noise levels are timesteps and whose predictions are noise."""

    def get_pred_x0(self, x_in: Tensor, x_out: Tensor, sigma: Tensor) -> Tensor:
        alpha = shared.sd_model.alphas_cumprod[sigma.long()][:, None, None, None]
        return (x_in - (1 - alpha).sqrt() * x_out) / alpha.sqrt()

    @property
    def inner_model(self) -> Any:
        if self.model_wrap is None:
            self.model_wrap = CompVisTimestepsDenoiser(shared.sd_model)
        return self.model_wrap


class CompVisSampler(sd_samplers_common.Sampler):
    """Runs a sampling function whose noise levels are increasing timesteps."""

    eta = 0.0

    def __init__(self, funcname: Any, sd_model: Any):
        super().__init__(funcname, CFGDenoiserTimesteps)

    def levels(self, p: Any, steps: int) -> Tensor:
        return torch.clip(torch.arange(0, 1000, 1000 // steps, device=shared.device) + 1, 0, 999)

    def first_latent(self, noise: Tensor, levels: Tensor) -> Tensor:
        return noise

    def last_levels(self, levels: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        # as in the webui, x gets the noise of the level `steps - 1`, but sampling begins one level lower
        alpha = shared.sd_model.alphas_cumprod[levels[steps - 1]]
        return levels[: steps - 1], alpha.sqrt(), (1 - alpha).sqrt()

    def arguments(self, p: Any, x: Tensor, levels: Tensor, used: Tensor) -> dict[str, Any]:
        return {"timesteps": used}


samplers_data_timesteps = [sd_samplers_common.SamplerData("DDIM", lambda model: CompVisSampler(ddim, model), {})]
