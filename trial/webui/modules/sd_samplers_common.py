"""Stand-in: the parts that all samplers share."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import k_diffusion.sampling
import torch
from modules import devices, shared
from modules.shared import opts, state
from PIL import Image
from torch import Tensor

approximation_indexes = {"Full": 0}


class SamplerData(NamedTuple):
    """The entry of a sampler in the list of samplers."""

    name: str
    constructor: Callable[[Any], "Sampler"]
    options: dict[str, Any]

    def total_steps(self, steps: int) -> int:
        """Returns the number of model calls as the webui estimates it: two per step for second-order samplers."""
        return steps * 2 if self.options.get("second_order", False) else steps


class InterruptedException(BaseException):
    """Ends the sampling after a request of the user. It is no `Exception`, so handlers of errors do not catch it."""


def setup_img2img_steps(p: Any, steps: int | None = None) -> tuple[int, int]:
    """Returns the number of steps in the schedule, and a number n. The last n + 1 steps of the schedule run.

    If `steps` is given, that many steps run. Otherwise, the denoising strength determines how many run.
    """
    if steps is None:
        return p.steps, int(min(p.denoising_strength, 0.999) * p.steps)
    return int(steps / min(p.denoising_strength, 0.999)), steps - 1


def images_tensor_to_samples(image: Tensor, approximation: int | None = None, model: Any = None) -> Tensor:
    """Encodes images (B, 3, H, W) in 0..1 to latents (B, 4, h, w). `approximation` has no effect here."""
    model = model or shared.sd_model
    pictures = image.to(shared.device, devices.dtype_vae) * 2 - 1
    return torch.cat([model.get_first_stage_encoding(model.encode_first_stage(one[None])) for one in pictures])


def decode_first_stage(model: Any, x: Tensor) -> Tensor:
    """Decodes latents to images (B, 3, H, W) in -1..1."""
    return model.decode_first_stage(x.to(devices.dtype_vae))


def sample_to_image(samples: Tensor) -> Image.Image:
    """Decodes the first latent of (B, 4, h, w) to an image."""
    pixels = (decode_first_stage(shared.sd_model, samples[:1])[0] * 0.5 + 0.5).clamp(0, 1)
    return Image.fromarray((pixels * 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy())


class TorchHijack:
    """Replaces the module torch in k-diffusion's samplers, so that `randn_like` draws from the job's generators."""

    def __init__(self, p: Any):
        self.rng = p.rng

    def __getattr__(self, item: str) -> Any:
        return getattr(torch, item)

    def randn_like(self, x: Tensor) -> Tensor:
        """Draws new noise in the shape of the job's latents. The argument has no effect."""
        return self.rng.next()


class Sampler:
    """Runs a sampling function with the model of a job. In a subclass, noise levels are either sigmas or timesteps."""

    eta = 1.0
    config: SamplerData

    def __init__(self, func: Callable, denoiser_class: type):
        self.func = func
        self.model_wrap_cfg = denoiser_class(self)
        self.model_wrap = self.model_wrap_cfg.inner_model
        self.last_latent: Tensor | None = None
        self.sampler_extra_args: dict[str, Any] = {}

    def levels(self, p: Any, steps: int) -> Tensor:
        """Returns the noise levels of a schedule with `steps` steps."""
        raise NotImplementedError

    def first_latent(self, noise: Tensor, levels: Tensor) -> Tensor:
        """Scales noise with variance 1 to the first level of the schedule."""
        raise NotImplementedError

    def last_levels(self, levels: Tensor, steps: int) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """Returns the noise levels of the last `steps` steps, and two factors a and b.

        The first x of these steps is a * latent + b * noise.
        """
        raise NotImplementedError

    def arguments(self, p: Any, x: Tensor, levels: Tensor, used: Tensor) -> dict[str, Any]:
        """Returns the sampling function's arguments for the noise levels `used`. `levels` is the whole schedule."""
        raise NotImplementedError

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
        """Adds noise to the latent x and samples the last steps of the schedule."""
        steps, last = setup_img2img_steps(p, steps)
        levels = self.levels(p, steps)
        used, image_scale, noise_scale = self.last_levels(levels, last + 1)
        noised = image_scale * x + noise_scale * noise
        if opts.img2img_extra_noise > 0:
            p.extra_generation_params["Extra noise"] = opts.img2img_extra_noise
            noised += noise * opts.img2img_extra_noise * image_scale
        self.model_wrap_cfg.init_latent = self.last_latent = x
        arguments = self.arguments(p, x, levels, used)
        return self._run(p, noised, last + 1, conditioning, unconditional_conditioning, image_conditioning, arguments)

    def sample(
        self,
        p: Any,
        x: Tensor,
        conditioning: Any,
        unconditional_conditioning: Any,
        steps: int | None = None,
        image_conditioning: Any = None,
    ) -> Tensor:
        """Samples the whole schedule. x is noise with variance 1."""
        steps = steps or p.steps
        levels = self.levels(p, steps)
        self.last_latent = x = self.first_latent(x, levels)
        arguments = self.arguments(p, x, levels, levels)
        return self._run(p, x, steps, conditioning, unconditional_conditioning, image_conditioning, arguments)

    def create_noise_sampler(self, x: Tensor, sigmas: Tensor, p: Any) -> Any:
        """Returns a function that draws Brownian noise for the SDE samplers. Each image has its own seed."""
        seeds = p.all_seeds[p.iteration * p.batch_size : (p.iteration + 1) * p.batch_size]
        tree = k_diffusion.sampling.BrownianTreeNoiseSampler
        return tree(x, sigmas[sigmas > 0].min(), sigmas.max(), seed=seeds)

    def _run(
        self, p: Any, x: Tensor, steps: int, cond: Any, uncond: Any, image_cond: Any, arguments: dict[str, Any]
    ) -> Tensor:
        """Calls the sampling function. If it stops early, returns the clean latent that was last predicted for cond.

        It stops early if the user interrupts it, or if a noise sampler raises RecursionError.
        """
        k_diffusion.sampling.torch = TorchHijack(p)
        self.sampler_extra_args = {
            "cond": cond,
            "image_cond": image_cond,
            "uncond": uncond,
            "cond_scale": p.cfg_scale,
            "s_min_uncond": 0.0,
        }
        if "eta" in inspect.signature(self.func).parameters:
            arguments["eta"] = self.eta
        state.sampling_steps, state.sampling_step = steps, 0
        common = {"extra_args": self.sampler_extra_args, "disable": True, "callback": self._after_step}
        try:
            return self.func(self.model_wrap_cfg, x, **common, **arguments)
        except (InterruptedException, RecursionError):
            return self.last_latent

    def _after_step(self, d: dict) -> None:
        state.sampling_step = d["i"]
        shared.total_tqdm.update()
