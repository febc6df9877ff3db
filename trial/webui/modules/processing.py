"""Stand-in: jobs, and a function that runs a job and calls the hooks of the scripts in the same order as the webui."""

import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from modules import devices, images, infotext_utils, rng, scripts, sd_samplers, sd_samplers_common, shared
from modules.sd_samplers_common import images_tensor_to_samples
from modules.shared import opts, state
from PIL import Image
from torch import Tensor

opt_f = 8
VERSION = "stand-in"


class DecodedSamples(list):
    """Decoded images, each (3, H, W) in -1..1. A script can replace the latents by them in `post_sample`."""

    already_decoded = True


def decode_latent_batch(
    model: Any, batch: Tensor, target_device: Any = None, check_for_nans: bool = False
) -> DecodedSamples:
    """Decodes latents (B, 4, h, w) one by one.

    With `check_for_nans`, raises NansException if the first value of the latents or of an image is NaN.
    """
    if check_for_nans:
        devices.test_for_nans(batch, "unet")
    samples = DecodedSamples()
    for latent in batch:
        sample = sd_samplers_common.decode_first_stage(model, latent[None])[0]
        if check_for_nans:
            devices.test_for_nans(sample, "vae")
        samples.append(sample if target_device is None else sample.to(target_device))
    return samples


@dataclass(repr=False)
class StableDiffusionProcessing:
    """A job: its parameters, and its state while it runs."""

    outpath_samples: Any = None
    prompt: str = ""
    negative_prompt: str = ""
    seed: int = -1
    sampler_name: str | None = None
    batch_size: int = 1
    n_iter: int = 1
    steps: int = 50
    cfg_scale: float = 7.0
    width: int = 512
    height: int = 512
    tiling: bool = False
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    extra_generation_params: dict[str, Any] = field(default_factory=dict)
    denoising_strength: float = 0.75
    disable_extra_networks: bool = False

    # the following attributes have no annotations, so they are no parameters of the dataclass's constructor
    subseed_strength = 0.0
    scripts = sampler = rng = c = uc = None
    script_args = ()
    is_api = False
    overlay_images = paste_to = refiner_checkpoint_info = None
    iteration = 0
    prompts = negative_prompts = seeds = subseeds = None

    def __post_init__(self) -> None:
        self.comments: dict[str, int] = {}
        self.extra_network_data: dict[str, Any] = {}

    @property
    def sd_model(self) -> Any:
        return shared.sd_model

    def comment(self, text: str) -> None:
        """Adds a text that the page shows below the images."""
        self.comments[text] = 1

    def txt2img_image_conditioning(self, x: Tensor, width: int | None = None, height: int | None = None) -> Tensor:
        """Returns zeros (B, 5, 1, 1), because the model has no image conditioning."""
        return x.new_zeros(x.shape[0], 5, 1, 1)

    def init(self, all_prompts: list[str], all_seeds: list[int], all_subseeds: list[int]) -> None:
        """Prepares the job before its first iteration."""

    def sample(self) -> Tensor:
        """Samples the latents (B, 4, h, w) of one iteration."""
        raise NotImplementedError

    def close(self) -> None:
        """Frees the job's data."""
        self.sampler = self.c = self.uc = None

    def setup_prompts(self) -> None:
        count = self.batch_size * self.n_iter
        self.all_prompts, self.all_negative_prompts = [self.prompt] * count, [self.negative_prompt] * count

    def setup_conds(self) -> None:
        self.c = shared.sd_model.get_learned_conditioning(self.prompts)
        self.uc = shared.sd_model.get_learned_conditioning(self.negative_prompts)

    def get_conds(self) -> tuple[Any, Any]:
        return self.c, self.uc

    def save_samples(self) -> bool:
        """Returns whether the images of the current iteration are saved. After a stop by the user, they are not."""
        return not (self.do_not_save_samples or state.interrupted or state.skipped)


@dataclass(repr=False)
class StableDiffusionProcessingTxt2Img(StableDiffusionProcessing):
    """A job that makes images from a prompt."""

    enable_hr: bool = False

    hr_second_pass_steps = hr_upscale_to_x = hr_upscale_to_y = truncate_x = truncate_y = 0

    def sample(self) -> Tensor:
        self.sampler = sd_samplers.create_sampler(self.sampler_name, self.sd_model)
        x = self.rng.next()
        return self.sampler.sample(self, x, self.c, self.uc, image_conditioning=self.txt2img_image_conditioning(x))


@dataclass(repr=False)
class StableDiffusionProcessingImg2Img(StableDiffusionProcessing):
    """A job that makes images from a prompt and an image."""

    init_images: list = field(default_factory=list)

    resize_mode = 0
    mask = nmask = mask_for_overlay = None
    mask_round = True
    init_latent = image_conditioning = None

    def init(self, all_prompts: list[str], all_seeds: list[int], all_subseeds: list[int]) -> None:
        self.extra_generation_params["Denoising strength"] = self.denoising_strength
        self.sampler = sd_samplers.create_sampler(self.sampler_name, self.sd_model)
        sized = [images.resize_image(0, one.convert("RGB"), self.width, self.height) for one in self.init_images]
        pixels = torch.from_numpy(np.stack([np.asarray(one) for one in sized])).permute(0, 3, 1, 2).float() / 255
        latent = images_tensor_to_samples(pixels, model=self.sd_model)
        self.init_latent = latent if len(latent) == self.batch_size else latent[:1].repeat(self.batch_size, 1, 1, 1)
        self.image_conditioning = self.txt2img_image_conditioning(self.init_latent)

    def sample(self) -> Tensor:
        x = self.rng.next()
        if opts.initial_noise_multiplier != 1.0:
            self.extra_generation_params["Noise multiplier"] = opts.initial_noise_multiplier
            x *= opts.initial_noise_multiplier
        return self.sampler.sample_img2img(
            self, self.init_latent, x, self.c, self.uc, image_conditioning=self.image_conditioning
        )


class Processed:
    """The result of a job."""

    index_of_first_image = 0

    def __init__(self, p: StableDiffusionProcessing, images_list: list, infotexts: list[str] | None = None):
        self.images = images_list
        self.infotexts = infotexts or []
        self.info = self.infotexts[0] if self.infotexts else ""
        self.comments = "".join(f"{comment}\n" for comment in p.comments)


def create_infotext(
    p: StableDiffusionProcessing,
    all_prompts: list[str],
    all_seeds: list[int],
    all_subseeds: list[int],
    comments: Any = None,
    iteration: int = 0,
    position_in_batch: int = 0,
    use_main_prompt: bool = False,
    index: int | None = None,
    all_negative_prompts: list[str] | None = None,
) -> str:
    """Formats the prompts and parameters of one image as an infotext."""
    if index is None:
        index = 0 if use_main_prompt else position_in_batch + iteration * p.batch_size
    negative = (all_negative_prompts or p.all_negative_prompts)[index]
    params: dict[str, Any] = {
        "Steps": p.steps,
        "Sampler": p.sampler_name,
        # reserves the position of this key. Samplers with their own schedule write its value into
        # `extra_generation_params`
        "Schedule type": None,
        "CFG scale": p.cfg_scale,
        "Seed": all_seeds[index],
        "Size": f"{p.width}x{p.height}",
        "Model hash": shared.sd_model.sd_model_hash,
        "Model": shared.sd_model.sd_checkpoint_info.name_for_extra,
        "RNG": "CPU",
        **p.extra_generation_params,
        "Version": VERSION,
    }
    words = [f"{key}: {infotext_utils.quote(value)}" for key, value in params.items() if value is not None]
    negative_line = f"\nNegative prompt: {negative}" if negative else ""
    return f"{all_prompts[index]}{negative_line}\n{', '.join(words)}".strip()


def process_images(p: StableDiffusionProcessing) -> Processed:
    """Runs a job. Returns its images and infotexts."""
    runner = p.scripts if p.scripts is not None else scripts.ScriptRunner()
    runner.call("before_process", p)
    # -1 means a random seed
    seed = random.randrange(4294967294) if p.seed in (-1, None) else int(p.seed)
    p.setup_prompts()
    p.all_seeds = p.all_subseeds = [seed + i for i in range(len(p.all_prompts))]
    runner.call("process", p)
    infotexts: list[str] = []
    output: list[Image.Image] = []
    with torch.no_grad():
        with devices.autocast():
            p.init(p.all_prompts, p.all_seeds, p.all_subseeds)
        if state.job_count == -1:
            state.job_count = p.n_iter
        for n in range(p.n_iter):
            p.iteration = n
            state.skipped = False
            if state.interrupted or state.stopping_generation:
                break
            for picture, text in _iteration(p, runner, n):
                output.append(picture)
                infotexts.append(text)
    if not infotexts:
        infotexts.append(create_infotext(p, p.all_prompts, p.all_seeds, p.all_subseeds, index=0))
    result = Processed(p, output, infotexts)
    runner.call("postprocess", p, result)
    return result


def _iteration(p: StableDiffusionProcessing, runner: Any, n: int) -> list[tuple[Image.Image, str]]:
    """Samples and decodes iteration n. Returns its images with their infotexts."""
    mine = slice(n * p.batch_size, (n + 1) * p.batch_size)
    p.prompts, p.negative_prompts = p.all_prompts[mine], p.all_negative_prompts[mine]
    p.seeds, p.subseeds = p.all_seeds[mine], p.all_subseeds[mine]
    p.rng = rng.ImageRNG((shared.sd_model.latent_channels, p.height // opt_f, p.width // opt_f), p.seeds)
    runner.call("process_batch", p, batch_number=n, prompts=p.prompts, seeds=p.seeds, subseeds=p.subseeds)
    p.setup_conds()
    with devices.without_autocast() if devices.unet_needs_upcast else devices.autocast():
        replaced = scripts.PostSampleArgs(p.sample())
    runner.call("post_sample", p, replaced)
    samples = replaced.samples
    if not getattr(samples, "already_decoded", False):
        samples = decode_latent_batch(p.sd_model, samples, target_device=devices.cpu, check_for_nans=True)
    pixels = torch.clamp((torch.stack(list(samples)).float() + 1.0) / 2.0, 0.0, 1.0)
    state.nextjob()
    return [_finish(p, runner, image, i) for i, image in enumerate(pixels)]


def _finish(p: StableDiffusionProcessing, runner: Any, pixels: Tensor, i: int) -> tuple[Image.Image, str]:
    """Converts the pixels (3, H, W) in 0..1 of image i of an iteration to an image, and returns it with its infotext.

    Also saves the image if `save_samples` allows it.
    """
    p.batch_index = i
    array = (255.0 * pixels.permute(1, 2, 0).cpu().numpy()).astype(np.uint8)
    pp = SimpleNamespace(image=Image.fromarray(array))
    runner.call("postprocess_image", p, pp)
    text = create_infotext(p, p.prompts, p.seeds, p.subseeds, index=i, all_negative_prompts=p.negative_prompts)
    if p.save_samples():
        folder = p.outpath_samples
        images.save_image(pp.image, folder, "", p.seeds[i], p.prompts[i], opts.samples_format, info=text, p=p)
    if opts.enable_pnginfo:
        pp.image.info["parameters"] = text
    return pp.image, text
