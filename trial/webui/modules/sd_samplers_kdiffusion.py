"""Stand-in: k-diffusion's own samplers."""

from typing import Any

import k_diffusion.external
import k_diffusion.sampling
import torch
from modules import sd_samplers_cfg_denoiser, sd_samplers_common, shared
from modules.sd_samplers_common import SamplerData
from torch import Tensor

SCHEDULES = {
    "karras": k_diffusion.sampling.get_sigmas_karras,
    "exponential": k_diffusion.sampling.get_sigmas_exponential,
}


class CFGDenoiserKDiffusion(sd_samplers_cfg_denoiser.CFGDenoiser):
    """A denoiser whose noise levels are sigmas and whose predictions are clean latents."""

    @property
    def inner_model(self) -> Any:
        if self.model_wrap is None:
            self.model_wrap = k_diffusion.external.CompVisDenoiser(shared.sd_model, quantize=False)
        return self.model_wrap


class KDiffusionSampler(sd_samplers_common.Sampler):
    """Runs one of k-diffusion's sampling functions. The noise levels are sigmas."""

    def __init__(self, funcname: str, sd_model: Any):
        super().__init__(getattr(k_diffusion.sampling, funcname), CFGDenoiserKDiffusion)

    def get_sigmas(self, p: Any, steps: int) -> Tensor:
        """Returns the decreasing noise levels of a schedule with `steps` steps. The last level is zero."""
        discard = self.config.options.get("discard_next_to_last_sigma", False)
        steps += int(discard)
        name = self.config.options.get("scheduler")
        if name is None:
            sigmas = self.model_wrap.get_sigmas(steps)
        else:
            p.extra_generation_params["Schedule type"] = name.capitalize()
            lowest, highest = self.model_wrap.sigmas[0].item(), self.model_wrap.sigmas[-1].item()
            sigmas = SCHEDULES[name](n=steps, sigma_min=lowest, sigma_max=highest, device=shared.device)
        return torch.cat([sigmas[:-2], sigmas[-1:]]) if discard else sigmas

    levels = get_sigmas

    def first_latent(self, noise: Tensor, levels: Tensor) -> Tensor:
        return noise * levels[0]

    def last_levels(self, levels: Tensor, steps: int) -> tuple[Tensor, float, Tensor]:
        used = levels[-steps - 1 :]
        return used, 1.0, used[0]

    def arguments(self, p: Any, x: Tensor, levels: Tensor, used: Tensor) -> dict[str, Any]:
        if not self.config.options.get("brownian_noise", False):
            return {"sigmas": used}
        return {"sigmas": used, "noise_sampler": self.create_noise_sampler(x, levels, p)}


def _sampler(name: str, funcname: str, **options: Any) -> SamplerData:
    return SamplerData(name, lambda model: KDiffusionSampler(funcname, model), options)


samplers_data_k_diffusion = [
    _sampler("DPM++ 2M", "sample_dpmpp_2m", scheduler="karras"),
    _sampler("DPM++ SDE", "sample_dpmpp_sde", scheduler="karras", second_order=True, brownian_noise=True),
    _sampler("DPM++ 2M SDE", "sample_dpmpp_2m_sde", scheduler="exponential", brownian_noise=True),
    _sampler("Euler a", "sample_euler_ancestral"),
    _sampler("Euler", "sample_euler"),
    _sampler("LMS", "sample_lms"),
    _sampler("Heun", "sample_heun", second_order=True),
    _sampler(
        "DPM2 a", "sample_dpm_2_ancestral", scheduler="karras", second_order=True, discard_next_to_last_sigma=True
    ),
]
