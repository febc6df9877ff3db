"""Stand-in: k-diffusion's own samplers."""

import inspect
from typing import Any

import k_diffusion.external
import k_diffusion.sampling
import torch
from modules import sd_samplers_cfg_denoiser, sd_samplers_common, shared
from torch import Tensor

ROWS = [
    ("DPM++ 2M", "sample_dpmpp_2m", "k_dpmpp_2m", {"scheduler": "karras"}),
    (
        "DPM++ SDE",
        "sample_dpmpp_sde",
        "k_dpmpp_sde",
        {"scheduler": "karras", "second_order": True, "brownian_noise": True},
    ),
    ("DPM++ 2M SDE", "sample_dpmpp_2m_sde", "k_dpmpp_2m_sde", {"scheduler": "exponential", "brownian_noise": True}),
    ("Euler a", "sample_euler_ancestral", "k_euler_a", {"uses_ensd": True}),
    ("Euler", "sample_euler", "k_euler", {}),
    ("LMS", "sample_lms", "k_lms", {}),
    ("Heun", "sample_heun", "k_heun", {"second_order": True}),
    (
        "DPM2 a",
        "sample_dpm_2_ancestral",
        "k_dpm_2_a",
        {"scheduler": "karras", "discard_next_to_last_sigma": True, "uses_ensd": True, "second_order": True},
    ),
]

samplers_data_k_diffusion = [
    sd_samplers_common.SamplerData(name, lambda model, func=func: KDiffusionSampler(func, model), [alias], options)
    for name, func, alias, options in ROWS
]

sampler_extra_params = {
    "sample_euler": ["s_churn", "s_tmin", "s_tmax", "s_noise"],
    "sample_heun": ["s_churn", "s_tmin", "s_tmax", "s_noise"],
    "sample_dpm_2_ancestral": ["s_noise"],
    "sample_dpmpp_sde": ["s_noise"],
    "sample_dpmpp_2m_sde": ["s_noise"],
}

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
    """Runs one of k-diffusion's functions."""

    def __init__(self, funcname: str, sd_model: Any, options: dict | None = None):
        super().__init__(funcname)
        self.extra_params = sampler_extra_params.get(funcname, [])
        self.options = options or {}
        self.func = getattr(k_diffusion.sampling, funcname)
        self.model_wrap_cfg = CFGDenoiserKDiffusion(self)
        self.model_wrap = self.model_wrap_cfg.inner_model

    def get_sigmas(self, p: Any, steps: int) -> Tensor:
        """Returns the decreasing noise levels of `steps` steps, and zero."""
        discard = self.config.options.get("discard_next_to_last_sigma", False)
        steps += int(discard)
        name = p.scheduler if p.scheduler not in (None, "Automatic") else self.config.options.get("scheduler")
        function = SCHEDULES.get((name or "").lower())
        if function is None:
            sigmas = self.model_wrap.get_sigmas(steps)
        else:
            p.extra_generation_params["Schedule type"] = name.capitalize()
            lowest, highest = self.model_wrap.sigmas[0].item(), self.model_wrap.sigmas[-1].item()
            sigmas = function(n=steps, sigma_min=lowest, sigma_max=highest, device=shared.device)
        return torch.cat([sigmas[:-2], sigmas[-1:]]) if discard else sigmas

    def _extra(self, p: Any, x: Tensor, sigmas: Tensor, schedule: Tensor) -> dict[str, Any]:
        extra = self.initialize(p)
        if "sigmas" in inspect.signature(self.func).parameters:
            extra["sigmas"] = schedule
        if self.config.options.get("brownian_noise", False):
            extra["noise_sampler"] = self.create_noise_sampler(x, sigmas, p)
        return extra

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
        sigmas = self.get_sigmas(p, steps)
        schedule = sigmas[steps - last - 1 :]
        noised = x + noise * schedule[0]
        if shared.opts.img2img_extra_noise > 0:
            p.extra_generation_params["Extra noise"] = shared.opts.img2img_extra_noise
            noised += noise * shared.opts.img2img_extra_noise
        extra = self._extra(p, x, sigmas, schedule)
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
        sigmas = self.get_sigmas(p, steps)
        x = x * sigmas[0]
        extra = self._extra(p, x, sigmas, sigmas)
        self.last_latent = x
        return self.run(p, x, steps, (conditioning, unconditional_conditioning, image_conditioning), extra)
