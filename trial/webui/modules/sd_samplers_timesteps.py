"""Stand-in: samplers that use timesteps and the model's predicted noise."""

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
    """DDIM (Song et al., 2021, equation 12) over increasing `timesteps`, from the last to the first."""
    alphas_cumprod = model.inner_model.inner_model.alphas_cumprod.cpu().double()
    ones = x.new_ones(x.shape[0])
    levels = timesteps.flip(0).tolist()
    for i, (t, t_next) in enumerate(pairwise(levels)):
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
    """Returns the model's own prediction of the noise."""

    def __init__(self, model: Any):
        super().__init__()
        self.inner_model = model

    def forward(self, input: Tensor, timesteps: Tensor, **kwargs: Any) -> Tensor:
        return self.inner_model.apply_model(input, timesteps, **kwargs)


class CFGDenoiserTimesteps(sd_samplers_cfg_denoiser.CFGDenoiser):
    """A denoiser whose noise levels are timesteps and whose predictions are noise."""

    def __init__(self, sampler: Any):
        super().__init__(sampler)
        self.alphas = shared.sd_model.alphas_cumprod
        self.mask_before_denoising = True

    def get_pred_x0(self, x_in: Tensor, x_out: Tensor, sigma: Tensor) -> Tensor:
        alpha = self.alphas[sigma.long()][:, None, None, None]
        return (x_in - (1 - alpha).sqrt() * x_out) / alpha.sqrt()

    @property
    def inner_model(self) -> Any:
        if self.model_wrap is None:
            self.model_wrap = CompVisTimestepsDenoiser(shared.sd_model)
        return self.model_wrap


class CompVisSampler(sd_samplers_common.Sampler):
    """Runs a function over timesteps."""

    def __init__(self, funcname: Any, sd_model: Any):
        super().__init__(funcname)
        self.eta_option_field, self.eta_infotext_field, self.eta_default = "eta_ddim", "Eta DDIM", 0.0
        self.model_wrap_cfg = CFGDenoiserTimesteps(self)
        self.model_wrap = self.model_wrap_cfg.inner_model

    def get_timesteps(self, p: Any, steps: int) -> Tensor:
        """Returns increasing timesteps."""
        return torch.clip(torch.arange(0, 1000, 1000 // steps, device=shared.device) + 1, 0, 999)

    def sample_img2img(
        self,
        p: Any,
        x: Tensor,
        noise: Tensor,
        conditioning: Any,
        unconditional_conditioning: Any,
        steps: int | None = None,
        image_conditioning: Any = None,
    ) -> Tensor:
        """Samples the last part of the schedule, from the latent x with added noise."""
        steps, last = sd_samplers_common.setup_img2img_steps(p, steps)
        timesteps = self.get_timesteps(p, steps)
        alpha = shared.sd_model.alphas_cumprod[timesteps[last]]
        noised = x * alpha.sqrt() + noise * (1 - alpha).sqrt()
        if shared.opts.img2img_extra_noise > 0:
            p.extra_generation_params["Extra noise"] = shared.opts.img2img_extra_noise
            noised += noise * shared.opts.img2img_extra_noise * alpha.sqrt()
        extra = {**self.initialize(p), "timesteps": timesteps[:last]}
        self.model_wrap_cfg.init_latent = x
        self.last_latent = x
        conds = (conditioning, unconditional_conditioning, image_conditioning)
        return self.run(p, noised, last + 1, conds, extra)

    def sample(
        self,
        p: Any,
        x: Tensor,
        conditioning: Any,
        unconditional_conditioning: Any,
        steps: int | None = None,
        image_conditioning: Any = None,
    ) -> Tensor:
        """Samples the whole schedule from noise x."""
        steps = steps or p.steps
        extra = {**self.initialize(p), "timesteps": self.get_timesteps(p, steps)}
        self.last_latent = x
        return self.run(p, x, steps, (conditioning, unconditional_conditioning, image_conditioning), extra)


samplers_data_timesteps = [
    sd_samplers_common.SamplerData("DDIM", lambda model: CompVisSampler(ddim, model), ["ddim"], {}),
]
