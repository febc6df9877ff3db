"""Samples one stage with a new sampler of the webui."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from modules import rng, sd_samplers, sd_samplers_timesteps, shared
from modules.sd_samplers_common import InterruptedException
from torch import Tensor

from lib_demofusion.host.backends import host
from lib_demofusion.host.backends.interface import StageParts
from lib_demofusion.host.common import replaced
from lib_demofusion.host.common.messages import report_note
from lib_demofusion.host.images.coding import model_problem
from lib_demofusion.host.images.inpainting import is_inpainting
from lib_demofusion.host.integrations import layer_patches
from lib_demofusion.host.progress import timing
from lib_demofusion.host.progress.timing import StageProgress
from lib_demofusion.host.sampling.stage_setup import CallsOfStage, stage_steps, view_batches
from lib_demofusion.method.conditioning import Frame, conds_of_stage, image_conditioning_for
from lib_demofusion.method.plan import Plan, StagePlan
from lib_demofusion.method.residual import Flow, NoiseSpace, VarianceExploding, VariancePreserving
from lib_demofusion.method.sampler_checks import UnknownSampler, guard_for
from lib_demofusion.method.sampler_steps import flow_form, function_name, is_stochastic, make_detector
from lib_demofusion.method.stage import SamplerTraits, StageRun
from lib_demofusion.method.stages import StageStopped
from lib_demofusion.settings.fields import Settings

SEED_OFFSET = 0x9E3779B97F4A7C15
"""The difference between the seeds of one stage and the next.

Without this difference, the noise of a stage would repeat the random numbers of the base image.
"""

EXTRA_NOISE = "Extra noise"
"""The infotext key of the webui's setting "Extra noise multiplier" (modules/sd_samplers_kdiffusion.py)."""

SEED_MASK = (1 << 63) - 1

NEVER_CALLED = "the sampler did not evaluate the tiles of DemoFusion, so its result is not used; choose another sampler"

NO_NOISE = "the sampler cannot draw noise for this schedule type; choose another schedule type"

Report = Callable[[StageProgress], None]
"""A function that shows the progress of the stage to the user."""


class StageFailed(Exception):
    """The stage ended without a usable latent. The text of this error is shown to the user."""


def stop_requested() -> bool:
    """Returns whether the user has clicked Interrupt or Skip, or asked the webui to stop after the current image."""
    state = shared.state
    return bool(state.interrupted or state.skipped or getattr(state, "stopping_generation", False))


@dataclass(frozen=True)
class StageTask:
    """The inputs of a stage."""

    stage: StagePlan
    settings: Settings
    anchor: Tensor
    """The anchor (B, C, H, W): the upscaled latent of the previous image, at the size of the stage."""
    plan: Plan | None = None
    """The plan of the run. If None, the base image is not cropped, and the size of this stage is the final size."""


def run_stage(p: Any, task: StageTask, report: Report) -> Tensor:
    """Samples a stage, beginning with its anchor. Returns the latent (B, C, H, W).

    Raises StageStopped if the user stops the stage, and StageFailed if its result is not usable. Does not catch errors
    of the model.
    """
    x = StageSampler(p, task, report).run()
    if not torch.isfinite(x).all():
        raise StageFailed(model_problem())
    return x


class StageSampler:
    """Samples one stage with a sampler of the webui, which is created for this stage only."""

    def __init__(self, p: Any, task: StageTask, report: Report):
        self._p, self._task, self._report = p, task, report
        self._sampler = sd_samplers.create_sampler(p.sampler_name, p.sd_model)
        self._func = self._sampler.func
        self._family = host().family(p.sd_model)
        self._name = function_name(self._func)
        seeds, subseeds = stage_seeds(p.seeds, task.stage.number), stage_seeds(p.subseeds, task.stage.number)
        _seed_brownian_noise(self._sampler, seeds)
        form, strength = self._family.form, p.subseed_strength
        shape = form.host_shape(task.anchor.shape[1], task.stage.size)
        self._rng = rng.ImageRNG(shape, seeds, subseeds=subseeds, subseed_strength=strength)
        self._noise = form.to_method(self._rng.next()).to(task.anchor)
        self._batches = view_batches(p, task.settings, task.stage.size)

    def run(self) -> Tensor:
        """Runs the sampler. Returns the latent (B, C, H, W) and raises the errors that `run_stage` documents."""
        p, task = self._p, self._task
        # `wraps` keeps the signature of the sampling function, because the webui inspects the parameters
        self._sampler.func = functools.wraps(self._func)(lambda *args, **kwargs: self._execute(*args, **kwargs))
        steps = stage_steps(p, self._sampler, self._name, task.settings, self._family.flow)
        sampling = host().sampling(p, task.stage, self._batches.views, task.anchor, self._noise)
        with replaced(p, rng=self._rng, steps=steps.schedule), _extra_noise_of_base(p), sampling:
            made = self._sample(steps.run, _image_conditioning(p, task.anchor, task.plan))
        return self._family.form.to_method(made)

    def _sample(self, steps: int, conditioning: Tensor) -> Tensor:
        """Calls the sampler for the last `steps` steps of the schedule.

        The webui computes an initial x from the anchor and the noise. `StageRun.before_call` replaces this x before the
        first model call.
        """
        p, sampler = self._p, self._sampler
        anchor, noise = (self._family.form.to_host(x) for x in (self._task.anchor, self._noise))
        calls = sampler.config.total_steps(1)
        cond, uncond = (conds_of_stage(conds, calls * p.steps, calls * steps) for conds in p.get_conds())
        if isinstance(sampler, sd_samplers_timesteps.CompVisSampler):
            if steps == p.steps:
                # for all steps, `sample` is called, because `sample_img2img` would drop the first timestep
                sampler.model_wrap_cfg.init_latent = anchor
                return sampler.sample(p, noise.clone(), cond, uncond, image_conditioning=conditioning)
            # with the same number, `sample_img2img` of these samplers runs one step less than `sample`
            steps += 1
        # the webui computes the length of the schedule as int(steps / denoising_strength), which is p.steps here
        with replaced(p, denoising_strength=steps / (p.steps + 0.5)):
            return sampler.sample_img2img(p, anchor, noise, cond, uncond, steps, conditioning)

    def _execute(self, denoiser: Any, x: Tensor, *args: Any, callback: Callable[[dict], None], **kwargs: Any) -> Tensor:
        """Runs the sampling function with a StageRun between it and the model.

        This method replaces the sampling function, because the webui determines arguments such as sigmas and eta only
        when it calls the function. The form of the skip residual depends on these arguments. The method reads noise
        levels from copies on the CPU, because reading them from the GPU would wait for the GPU.
        """
        known = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in kwargs.items()}
        if is_inpainting(self._p):
            # the webui blends `init_latent` into x outside the mask, so it must be the original latent, not the anchor
            denoiser.init_latent = self._p.init_latent
        traits = self._traits(known, x)
        run = StageRun(self._task.stage, self._task.settings, self._task.anchor, self._noise, traits)
        calls = CallsOfStage(self._p, self._name, known, self._second_order)
        progress = StageProgress(run, calls.ahead)
        self._attach(denoiser, run, progress)
        if traits.detector.copies_x:
            run.start(x, known["sigmas"][0])

        form = self._family.form

        def after_step(d: dict) -> None:
            run.after_step(d["i"], form.to_method(d["x"]), form.to_method(d["denoised"]), d["x"])
            callback(d)
            progress.after_call()
            self._report(progress)

        try:
            with _errors_of_sampler(self._p.sampler_name):
                made = self._func(denoiser, x, *args, callback=after_step, **kwargs)
                run.end()
        finally:
            timing.learn(self._p.sd_model, timing.MODEL, progress.rate)
        if not run.predictions:
            raise StageFailed(NEVER_CALLED)
        calls.learn(run.call + 1)
        return made

    def _traits(self, arguments: Mapping[str, Any], x: Tensor) -> SamplerTraits:
        """Determines the properties of the sampler on which the form of the skip residual depends.

        `arguments` are the keyword arguments of the sampling function. `x` is the latent that it receives.
        """
        sigmas, n = arguments.get("sigmas"), arguments.get("n")
        parameters = inspect.signature(self._func).parameters
        eta, churn = (arguments.get(name, _default(parameters, name)) for name in ("eta", "s_churn"))
        eta_of_detector = 1.0 if eta is None else eta
        form = flow_form(self._name) if self._family.flow else self._name
        detector = make_detector(form, sigmas, n, eta_of_detector, self._second_order)
        stochastic = is_stochastic(self._name, eta, churn or 0.0, "noise_sampler" in parameters)
        return SamplerTraits(self._space(), detector, stochastic, guard_for(detector, x))

    def _space(self) -> NoiseSpace:
        if self._family.flow:
            return Flow()
        if isinstance(self._sampler, sd_samplers_timesteps.CompVisSampler):
            return VariancePreserving(self._p.sd_model.alphas_cumprod)
        return VarianceExploding(self._sampler.model_wrap.sigma_to_t)

    @property
    def _second_order(self) -> bool:
        return self._sampler.config.options.get("second_order", False)

    def _attach(self, denoiser: Any, run: StageRun, progress: StageProgress) -> None:
        """Makes the denoiser evaluate the model on batches of views.

        Before each batch, the progress is reported, and the stage ends if the user has asked to stop.
        """
        plan = self._task.plan
        origin = getattr(shared.opts, "sdxl_crop_top", 0), getattr(shared.opts, "sdxl_crop_left", 0)
        frame = Frame((plan or self._task.stage).pixels, origin)

        def before_batch(cells: float) -> None:
            if stop_requested():
                raise InterruptedException
            progress.before_batch(cells)
            self._report(progress)

        self._limit_batches()
        apart = layer_patches.needs_one_call(self._p)
        form = self._family.form
        host().attach(denoiser, StageParts(self._p, run, plan, self._batches, frame, before_batch, form, apart))

    def _limit_batches(self) -> None:
        """Limits batches to one view if other extensions have patched the layers of the model (see `layer_patches`).

        If batches could have been larger, the user gets a note.
        """
        names = layer_patches.extensions_with_patches(self._p)
        if names and self._batches.limit_to_one_view():
            report_note(
                self._p, f"evaluating single tiles, which is slower, because the model is changed by {', '.join(names)}"
            )


@contextmanager
def _errors_of_sampler(name: str) -> Iterator[None]:
    """Raises StageStopped or StageFailed instead of the errors with which a sampling function ends early.

    `name` is the sampler's name in the webui.
    """
    try:
        yield
    except InterruptedException:
        raise StageStopped from None
    except RecursionError:
        # the webui would catch this error of a noise sampler, and return the latent of the last step as the result
        raise StageFailed(NO_NOISE) from None
    except UnknownSampler as error:
        raise StageFailed(f"the sampler {name}: {error}") from None


@contextmanager
def _extra_noise_of_base(p: Any) -> Iterator[None]:
    """Removes the infotext entry for extra noise after the block, unless the base pass has written the entry.

    The sampler of a stage writes this entry too, although the webui's setting for extra noise has no effect in a stage:
    `StageRun.before_call` replaces x after the webui has added the noise.
    """
    before = p.extra_generation_params.get(EXTRA_NOISE)
    try:
        yield
    finally:
        if before is None:
            p.extra_generation_params.pop(EXTRA_NOISE, None)


def stage_seeds(seeds: list[int], stage: int) -> list[int]:
    """Returns one seed for each image. The seeds differ from the seeds of all other stages and of the base image."""
    return [(int(seed) + SEED_OFFSET * stage) & SEED_MASK for seed in seeds]


def _default(parameters: Mapping[str, inspect.Parameter], name: str) -> Any:
    """Returns the default value of the parameter `name`, or None if there is no such parameter or default."""
    found = parameters.get(name)
    return None if found is None or found.default is inspect.Parameter.empty else found.default


def _seed_brownian_noise(sampler: Any, seeds: list[int]) -> None:
    """Makes SDE samplers draw their noise from the seeds of this stage.

    For this noise, the webui reads the seeds from `p.all_seeds`, which are the seeds of the base images.
    """
    create = sampler.create_noise_sampler
    batch = SimpleNamespace(all_seeds=seeds, iteration=0, batch_size=len(seeds))
    sampler.create_noise_sampler = lambda x, sigmas, p: create(x, sigmas, batch)


def _image_conditioning(p: Any, anchor: Tensor, plan: Plan | None) -> Tensor:
    """Returns the image conditioning, which only inpainting, depth, editing and unCLIP models use.

    The stages use the conditioning of the base pass, so no large image is encoded. In img2img, the conditioning shows
    the source image and is resized to the size of the stage. In txt2img, the conditioning marks the whole base image as
    masked, and is resized later for every view.
    """
    shown = getattr(p, "image_conditioning", None)
    if shown is not None:
        return image_conditioning_for(shown, anchor, plan.crop if plan else None)
    used = (getattr(p.sampler, "sampler_extra_args", None) or {}).get("image_cond")
    return used if used is not None else p.txt2img_image_conditioning(anchor)
