"""Stand-in: the shared parts of all samplers."""

import inspect
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import k_diffusion.sampling
import torch
from modules import devices, shared
from modules.shared import opts, state
from PIL import Image
from torch import Tensor

approximation_indexes = {"Full": 0}

_SamplerDataTuple = namedtuple("SamplerData", ["name", "constructor", "aliases", "options"])


class SamplerData(_SamplerDataTuple):
    """The data of a sampler before it is created."""

    def total_steps(self, steps: int) -> int:
        """Returns the number of model calls in `steps` steps."""
        return steps * 2 if self.options.get("second_order", False) else steps


class InterruptedException(BaseException):
    """The user asked to stop. This is not an error, so `except Exception` does not catch it."""


def setup_img2img_steps(p: Any, steps: int | None = None) -> tuple[int, int]:
    """Returns the number of steps in the schedule, and the number of its last steps to run minus one."""
    if opts.img2img_fix_steps or steps is not None:
        requested = steps or p.steps
        return int(requested / min(p.denoising_strength, 0.999)) if p.denoising_strength > 0 else 0, requested - 1
    return p.steps, int(min(p.denoising_strength, 0.999) * p.steps)


def images_tensor_to_samples(image: Tensor, approximation: int | None = None, model: Any = None) -> Tensor:
    """Encodes images (B, 3, H, W) in 0..1 to latents (B, 4, h, w)."""
    model = model or shared.sd_model
    pictures = image.to(shared.device, devices.dtype_vae) * 2 - 1
    return torch.cat([model.get_first_stage_encoding(model.encode_first_stage(one[None])) for one in pictures])


def decode_first_stage(model: Any, x: Tensor) -> Tensor:
    """Decodes latents to images (B, 3, H, W) in -1..1."""
    return model.decode_first_stage(x.to(devices.dtype_vae))


def sample_to_image(samples: Tensor, index: int = 0, approximation: int | None = None) -> Image.Image:
    """Decodes one latent to an image."""
    pixels = (decode_first_stage(shared.sd_model, samples[index : index + 1])[0] * 0.5 + 0.5).clamp(0, 1)
    return Image.fromarray((pixels * 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy())


def store_latent(decoded: Tensor) -> None:
    """Stores a latent for the page's live preview."""
    state.current_latent = decoded


class TorchHijack:
    """Replaces torch in k-diffusion's samplers: randn_like draws from the job's generators."""

    def __init__(self, p: Any):
        self.rng = p.rng

    def __getattr__(self, item: str) -> Any:
        return getattr(torch, item)

    def randn_like(self, x: Tensor) -> Tensor:
        """Returns the job's next noise, in the shape with which its generators were created."""
        return self.rng.next()


class Sampler:
    """Runs a sampling function on the model of a job."""

    def __init__(self, funcname: Any):
        self.funcname = funcname
        self.func: Callable = funcname
        self.extra_params: list[str] = []
        self.stop_at: int | None = None
        self.eta: float | None = None
        self.config: Any = None
        self.last_latent: Tensor | None = None
        self.s_min_uncond: float | None = None
        self.s_churn, self.s_tmin, self.s_tmax, self.s_noise = 0.0, 0.0, float("inf"), 1.0
        self.eta_option_field, self.eta_infotext_field, self.eta_default = "eta_ancestral", "Eta", 1.0
        self.conditioning_key = shared.sd_model.model.conditioning_key
        self.p: Any = None
        self.model_wrap_cfg: Any = None
        self.model_wrap: Any = None
        self.sampler_extra_args: dict[str, Any] = {}
        self.options: dict[str, Any] = {}

    def callback_state(self, d: dict) -> None:
        """The sampling function calls this once per step."""
        if self.stop_at is not None and d["i"] > self.stop_at:
            raise InterruptedException
        state.sampling_step = d["i"]
        shared.total_tqdm.update()

    def launch_sampling(self, steps: int, func: Callable[[], Tensor]) -> Tensor:
        """Calls `func`. If it is interrupted, returns the last prediction."""
        self.model_wrap_cfg.steps = steps
        self.model_wrap_cfg.total_steps = self.config.total_steps(steps)
        state.sampling_steps = steps
        state.sampling_step = 0
        try:
            return func()
        except InterruptedException:
            return self.last_latent

    def initialize(self, p: Any) -> dict[str, Any]:
        """Connects the sampler with a job. Returns the sampling function's parameters that depend on the job."""
        denoiser = self.model_wrap_cfg
        self.p = denoiser.p = p
        denoiser.mask, denoiser.nmask = getattr(p, "mask", None), getattr(p, "nmask", None)
        denoiser.step = 0
        self.eta = p.eta if p.eta is not None else getattr(opts, self.eta_option_field)
        self.s_min_uncond = p.s_min_uncond or 0.0
        k_diffusion.sampling.torch = TorchHijack(p)

        accepted = inspect.signature(self.func).parameters
        extra: dict[str, Any] = {}
        if "eta" in accepted:
            if self.eta != self.eta_default:
                p.extra_generation_params[self.eta_infotext_field] = self.eta
            extra["eta"] = self.eta
        for name in self.extra_params:
            value = getattr(opts, name) or getattr(self, name)
            if name in accepted and value != getattr(self, name):
                extra[name] = value
        return extra

    def create_noise_sampler(self, x: Tensor, sigmas: Tensor, p: Any) -> Any:
        """Returns Brownian noise for the SDE samplers, with one tree per image."""
        if opts.no_dpmpp_sde_batch_determinism:
            return None
        seeds = p.all_seeds[p.iteration * p.batch_size : (p.iteration + 1) * p.batch_size]
        tree = k_diffusion.sampling.BrownianTreeNoiseSampler
        return tree(x, sigmas[sigmas > 0].min(), sigmas.max(), seed=seeds)

    def run(self, p: Any, x: Tensor, steps: int, conds: tuple, extra: dict[str, Any]) -> Tensor:
        """Samples from x. `conds` are cond, uncond and image conditioning."""
        cond, uncond, image_cond = conds
        self.sampler_extra_args = {
            "cond": cond,
            "image_cond": image_cond,
            "uncond": uncond,
            "cond_scale": p.cfg_scale,
            "s_min_uncond": self.s_min_uncond,
        }
        common = {"extra_args": self.sampler_extra_args, "disable": True, "callback": self.callback_state}
        return self.launch_sampling(steps, lambda: self.func(self.model_wrap_cfg, x, **common, **extra))
