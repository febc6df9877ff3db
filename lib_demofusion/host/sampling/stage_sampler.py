"""Runs one stage on a sampler of the webui that nobody else holds."""

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
from lib_demofusion.host.common.messages import report_note
from lib_demofusion.host.common.scoped import replaced
from lib_demofusion.host.integrations import layer_patches
from lib_demofusion.host.pictures.inpainting import is_inpainting
from lib_demofusion.host.progress import timing
from lib_demofusion.host.progress.webui_steps import CallsOfStage
from lib_demofusion.host.sampling.stage_schedule import stage_steps
from lib_demofusion.host.sampling.view_batch import view_batches
from lib_demofusion.method.call_guard import UnknownSampler, guard_for
from lib_demofusion.method.conditioning import conds_of_stage, image_conditioning_for
from lib_demofusion.method.plan import Plan, StagePlan
from lib_demofusion.method.residual import Flow, NoiseSpace, VarianceExploding, VariancePreserving
from lib_demofusion.method.size_vectors import Frame
from lib_demofusion.method.stage import SamplerTraits, StageRun
from lib_demofusion.method.stage_meter import StageMeter
from lib_demofusion.method.stages import StageStopped
from lib_demofusion.method.step_gate import flow_form, is_stochastic, make_gate
from lib_demofusion.settings.fields import Settings

SEED_OFFSET = 0x9E3779B97F4A7C15
"""Added to the seeds once per stage: with the same seed, a stage's noise would begin with that of the base image."""

EXTRA_NOISE = "Extra noise"
"""The infotext key of the webui's own setting (modules/sd_samplers_kdiffusion.py)."""

SEED_MASK = (1 << 63) - 1

NEVER_ASKED = "this webui's sampler did not ask DemoFusion's model, so that what it made is no DemoFusion image"

Report = Callable[[StageMeter], None]
"""Is told how far the stage has come."""


class StageFailed(Exception):
    """The stage ended without a usable image."""


def stop_requested() -> bool:
    """Returns whether the user asked to interrupt, skip or stop."""
    state = shared.state
    return bool(state.interrupted or state.skipped or getattr(state, "stopping_generation", False))


@dataclass(frozen=True)
class StageTask:
    """What a stage is to do."""

    stage: StagePlan
    settings: Settings
    anchor: Tensor
    """The result of the stage before, enlarged, (B, C, H, W)."""
    plan: Plan | None = None
    """The run that the stage belongs to; without it the stage counts as the last one, of the whole base."""


def run_stage(p: Any, task: StageTask, report: Report) -> Tensor:
    """Returns the latent (B, C, H, W) that a stage makes of its anchor.

    Raises StageStopped when the user stops it, StageFailed when the result holds NaN, and what the model raises.
    """
    x = StageSampler(p, task, report).run()
    if x.shape != task.anchor.shape:
        # the host caught a RecursionError of a noise sampler and returned its preview
        raise StageFailed("the sampler gave up; choose another scheduler")
    if not torch.isfinite(x).all():
        raise StageFailed("the model returned NaN; --no-half or --upcast-sampling may help")
    return x


class StageSampler:
    """A sampler of the webui's own that is made for one stage and dropped behind it."""

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
        """Returns what the sampler makes; raises StageStopped, StageFailed, and what the model raises."""
        p, task = self._p, self._task
        # a function, which can say that it wraps the webui's: the webui looks at its parameters
        self._sampler.func = functools.wraps(self._func)(lambda *args, **kwargs: self._steered(*args, **kwargs))
        steps = stage_steps(p, self._sampler, self._name, task.settings, self._family.flow)
        sampling = host().sampling(p, task.stage, self._batches.views, task.anchor, self._noise)
        with replaced(p, rng=self._rng, steps=steps.schedule), _extra_noise_of_base(p), sampling:
            made = self._sample(steps.run, _image_conditioning(p, task.anchor, task.plan))
        return self._family.form.to_method(made)

    def _sample(self, steps: int, conditioning: Tensor) -> Tensor:
        """Calls the sampler so that it runs the last part of the schedule; `before_call` sets x at the first call."""
        p, sampler = self._p, self._sampler
        anchor, noise = (self._family.form.to_host(x) for x in (self._task.anchor, self._noise))
        calls = sampler.config.total_steps(1)
        cond, uncond = (conds_of_stage(conds, calls * p.steps, calls * steps) for conds in p.get_conds())
        if isinstance(sampler, sd_samplers_timesteps.CompVisSampler):
            if steps == p.steps:
                # sample_img2img would drop the first timestep of the schedule
                sampler.model_wrap_cfg.init_latent = anchor
                return sampler.sample(p, noise.clone(), cond, uncond, image_conditioning=conditioning)
            # it would begin a timestep too low
            steps += 1
        with replaced(p, denoising_strength=steps / (p.steps + 0.5)):
            return sampler.sample_img2img(p, anchor, noise, cond, uncond, steps, conditioning)

    def _steered(self, denoiser: Any, x: Tensor, *args: Any, callback: Callable[[dict], None], **kwargs: Any) -> Tensor:
        """Does what the sampling function does, with a StageRun between it and the model.

        Only here are all its arguments known (sigmas, eta, churn, the callback), which decide how the skip residual
        acts. Levels are looked at on the CPU.
        """
        known = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in kwargs.items()}
        if is_inpainting(self._p):
            # the host would blend with the anchor
            denoiser.init_latent = self._p.init_latent
        traits = self._traits(known, x)
        run = StageRun(self._task.stage, self._task.settings, self._task.anchor, self._noise, traits)
        calls = CallsOfStage(self._p, self._name, known, self._second_order)
        meter = StageMeter(run, calls.ahead)
        self._attach(denoiser, run, meter)
        if traits.gate.copies_x:
            run.start(x, known["sigmas"][0])

        form = self._family.form

        def after_step(d: dict) -> None:
            run.after_step(d["i"], form.to_method(d["x"]), form.to_method(d["denoised"]), d["x"])
            callback(d)
            meter.after_call()
            self._report(meter)

        try:
            made = self._func(denoiser, x, *args, callback=after_step, **kwargs)
            run.end()
        except InterruptedException:
            raise StageStopped from None
        except UnknownSampler as error:
            raise StageFailed(f"the sampler {self._p.sampler_name}: {error}") from None
        finally:
            timing.learn(self._p.sd_model, timing.MODEL, meter.rate)
        if not run.predictions:
            raise StageFailed(NEVER_ASKED)
        calls.learn(run.call + 1)
        return made

    def _traits(self, arguments: Mapping[str, Any], x: Tensor) -> SamplerTraits:
        """Returns how the skip residual acts under the sampling function with these arguments and this x."""
        sigmas, n = arguments.get("sigmas"), arguments.get("n")
        parameters = inspect.signature(self._func).parameters
        eta, churn = (arguments.get(name, _default(parameters, name)) for name in ("eta", "s_churn"))
        eta_of_gate = 1.0 if eta is None else eta
        form = flow_form(self._name) if self._family.flow else self._name
        gate = make_gate(form, sigmas, n, eta_of_gate, self._second_order)
        stochastic = is_stochastic(self._name, eta, churn or 0.0, "noise_sampler" in parameters)
        return SamplerTraits(self._space(), gate, stochastic, guard_for(gate, x))

    def _space(self) -> NoiseSpace:
        if self._family.flow:
            return Flow()
        if isinstance(self._sampler, sd_samplers_timesteps.CompVisSampler):
            return VariancePreserving(self._p.sd_model.alphas_cumprod)
        return VarianceExploding(self._sampler.model_wrap.sigma_to_t)

    @property
    def _second_order(self) -> bool:
        return self._sampler.config.options.get("second_order", False)

    def _attach(self, denoiser: Any, run: StageRun, meter: StageMeter) -> None:
        """Has the denoiser ask the model on batches of views; each reports, and ends the sampling if the user asks."""
        plan = self._task.plan
        origin = getattr(shared.opts, "sdxl_crop_top", 0), getattr(shared.opts, "sdxl_crop_left", 0)
        frame = Frame((plan or self._task.stage).pixels, origin)

        def before_batch(cells: float) -> None:
            if stop_requested():
                raise InterruptedException
            meter.before_batch(cells)
            self._report(meter)

        self._heed_patches()
        apart = layer_patches.needs_one_call(self._p)
        form = self._family.form
        host().attach(denoiser, StageParts(self._p, run, plan, self._batches, frame, before_batch, form, apart))

    def _heed_patches(self) -> None:
        """Gives the model one view at a time if other extensions have patched its layers."""
        names = layer_patches.extensions_with_patches(self._p)
        if names and self._batches.hold_to_one():
            report_note(self._p, f"one tile at a time, which takes longer, for {', '.join(names)} changes the model")


@contextmanager
def _extra_noise_of_base(p: Any) -> Iterator[None]:
    """Keeps what the infotext says of the webui's own setting for extra noise, which does not act in a stage.

    The webui's sampler adds that noise to an x which `StageRun.before_call` replaces. It acts in the base pass.
    """
    before = p.extra_generation_params.get(EXTRA_NOISE)
    try:
        yield
    finally:
        if before is None:
            p.extra_generation_params.pop(EXTRA_NOISE, None)


def stage_seeds(seeds: list[int], stage: int) -> list[int]:
    """Returns one seed per image that belongs to this stage alone."""
    return [(int(seed) + SEED_OFFSET * stage) & SEED_MASK for seed in seeds]


def function_name(function: Any) -> str:
    """Returns the name of a sampling function, also where an extension has set some of its arguments in a partial."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def _default(parameters: Mapping[str, inspect.Parameter], name: str) -> Any:
    """Returns the default of a parameter, or None if there is no such parameter or it has no default."""
    found = parameters.get(name)
    return None if found is None or found.default is inspect.Parameter.empty else found.default


def _seed_brownian_noise(sampler: Any, seeds: list[int]) -> None:
    """Gives the SDE samplers noise of this stage: the host seeds it with p.all_seeds, whatever p.rng says."""
    create = sampler.create_noise_sampler
    batch = SimpleNamespace(all_seeds=seeds, iteration=0, batch_size=len(seeds))
    sampler.create_noise_sampler = lambda x, sigmas, p: create(x, sigmas, batch)


def _image_conditioning(p: Any, anchor: Tensor, plan: Plan | None) -> Tensor:
    """Returns what an inpainting, depth, editing or unCLIP model gets besides the prompt.

    In img2img, and after hires fix, it shows the source image and must follow the stage's size. In txt2img it says
    that everything is to be painted, which is as true of every view at the base image's size: the base pass's own is
    taken, so that no big image is encoded.
    """
    shown = getattr(p, "image_conditioning", None)
    if shown is not None:
        return image_conditioning_for(shown, anchor, plan.crop if plan else None)
    used = (getattr(p.sampler, "sampler_extra_args", None) or {}).get("image_cond")
    return used if used is not None else p.txt2img_image_conditioning(anchor)
