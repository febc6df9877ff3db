"""Runs one stage with a sampler of the webui that nobody else holds."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from modules import rng, sd_samplers, sd_samplers_timesteps, shared
from modules.sd_samplers_common import InterruptedException
from torch import Tensor

from lib_demofusion.host.backends import host
from lib_demofusion.host.backends.interface import StageParts
from lib_demofusion.host.pictures.inpainting import is_inpainting
from lib_demofusion.host.progress import timing
from lib_demofusion.host.sampling.conditioning import conds_of_stage, image_conditioning_for
from lib_demofusion.host.sampling.sdxl import Frame
from lib_demofusion.host.sampling.view_batch import view_batches
from lib_demofusion.host.scoped import replaced
from lib_demofusion.method.plan import Plan, StagePlan
from lib_demofusion.method.residual import NoiseSpace, VarianceExploding, VariancePreserving
from lib_demofusion.method.stage import StageRun
from lib_demofusion.method.stage_steps import least_steps, long_enough, schedule_steps, steps_of_stage
from lib_demofusion.method.step_gate import is_stochastic, make_gate
from lib_demofusion.progress.costs import StageMeter, expected_levels
from lib_demofusion.settings.fields import Settings

SEED_OFFSET = 0x9E3779B97F4A7C15
"""Added to the seeds once per stage: with the same seed, a stage's noise would begin with that of the base picture."""

SEED_MASK = (1 << 63) - 1

NEVER_ASKED = "this webui's sampler did not ask DemoFusion's model, so that what it made is no DemoFusion picture"

Report = Callable[[float], None]
"""Is told the share of the stage that is done."""


class StageStopped(Exception):
    """The user interrupted, skipped or stopped the stage."""


class StageFailed(Exception):
    """The stage ended without a usable picture."""


def stop_requested() -> bool:
    """Returns whether the user asked to interrupt, skip or stop."""
    state = shared.state
    return bool(state.interrupted or state.skipped or getattr(state, "stopping_generation", False))


def run_stage(
    p: Any, stage: StagePlan, settings: Settings, anchor: Tensor, report: Report, plan: Plan | None = None
) -> Tensor:
    """Returns the latent (B, C, H, W) that the stage makes of its anchor.

    `plan` is the run that the stage belongs to; without it the stage counts as the last one, of the whole base.
    Raises StageStopped when the user stops it, StageFailed when the result holds NaN, and what the model raises.
    """
    sampler = sd_samplers.create_sampler(p.sampler_name, p.sd_model)
    seeds, subseeds = stage_seeds(p.seeds, stage.number), stage_seeds(p.subseeds, stage.number)
    _seed_brownian_noise(sampler, seeds)
    stage_rng = rng.ImageRNG(anchor.shape[1:], seeds, subseeds=subseeds, subseed_strength=p.subseed_strength)
    noise = stage_rng.next().to(anchor)
    origin = getattr(shared.opts, "sdxl_crop_top", 0), getattr(shared.opts, "sdxl_crop_left", 0)
    frame = Frame((plan or stage).pixels, origin)

    batches = view_batches(p, settings, stage.size)

    def attach(model: Any, run: StageRun, meter: StageMeter) -> Callable[[], None]:
        host().attach(model, StageParts(p, run, plan, batches, frame, _before_batch(meter, report)))
        return lambda: report(meter.after_call())

    _steer(sampler, stage, settings, anchor, noise, attach)
    least = least_steps(sampler.func.__name__, getattr(shared.opts, "uni_pc_order", 1))
    steps = long_enough(schedule_steps(p.steps, settings), settings.strength, least)
    sampling = host().sampling(p, stage, batches.views, anchor, noise)
    with replaced(p, rng=stage_rng, steps=steps), sampling:
        x = _sample(p, sampler, settings.strength, anchor, noise, _image_conditioning(p, anchor, plan))
    if x.shape != anchor.shape:
        # the host caught a RecursionError of a noise sampler and returned its preview
        raise StageFailed("the sampler gave up; choose another scheduler")
    if not torch.isfinite(x).all():
        raise StageFailed("the model returned NaN; --no-half or --upcast-sampling may help")
    return x


def stage_seeds(seeds: list[int], stage: int) -> list[int]:
    """Returns one seed per image that belongs to this stage alone."""
    return [(int(seed) + SEED_OFFSET * stage) & SEED_MASK for seed in seeds]


def _seed_brownian_noise(sampler: Any, seeds: list[int]) -> None:
    """Gives the SDE samplers noise of this stage: the host seeds it with p.all_seeds, whatever p.rng says."""
    create = sampler.create_noise_sampler
    batch = SimpleNamespace(all_seeds=seeds, iteration=0, batch_size=len(seeds))
    sampler.create_noise_sampler = lambda x, sigmas, p: create(x, sigmas, batch)


def _noise_space(p: Any, sampler: Any) -> NoiseSpace:
    if isinstance(sampler, sd_samplers_timesteps.CompVisSampler):
        return VariancePreserving(p.sd_model.alphas_cumprod)
    return VarianceExploding(sampler.model_wrap.sigma_to_t)


def _steer(
    sampler: Any,
    stage: StagePlan,
    settings: Settings,
    anchor: Tensor,
    noise: Tensor,
    attach: Callable[[Any, StageRun, StageMeter], Callable[[], None]],
) -> None:
    """Wraps the sampling function of our own sampler; what `attach` returns is called behind every callback.

    Only there are all its arguments known (sigmas, eta, churn, the callback), which decide how the skip residual acts.
    """
    func = sampler.func
    second_order = sampler.config.options.get("second_order", False)

    @functools.wraps(func)
    def steered(model: Any, x: Tensor, *args: Any, callback: Callable[[dict], None], **kwargs: Any) -> Tensor:
        eta = kwargs.get("eta") if "eta" in inspect.signature(func).parameters else None
        name = func.__name__
        known = _on_processor(kwargs)
        gate = make_gate(name, known.get("sigmas"), known.get("n"), eta if eta is not None else 1.0, second_order)
        stochastic = is_stochastic(name, eta, known.get("s_churn", 0.0))
        space = _noise_space(model.p, sampler)
        if is_inpainting(model.p):
            # the host would blend with the anchor
            model.init_latent = model.p.init_latent
        run = StageRun(stage, settings, anchor, noise, space, gate, stochastic)
        of_base = getattr(getattr(model.p.sampler, "model_wrap_cfg", None), "step", 0)
        meter = StageMeter(run, expected_levels(name, known, second_order, of_base).to(x))
        stepped = attach(model, run, meter)

        def after_step(d: dict) -> None:
            run.after_step(d["i"], d["x"], d["denoised"])
            callback(d)
            stepped()

        try:
            made = func(model, x, *args, callback=after_step, **kwargs)
        except InterruptedException:
            raise StageStopped from None
        finally:
            timing.learn(model.p.sd_model, timing.MODEL, meter.rate)
        if not run.predictions:
            raise StageFailed(NEVER_ASKED)
        return made

    sampler.func = steered


def _on_processor(arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns a sampling function's arguments with its schedule on the CPU: each of its levels is looked at there."""
    return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in arguments.items()}


def _before_batch(meter: StageMeter, report: Report) -> Callable[[float], None]:
    """Returns what is called before every batch: it reports progress, and ends the sampling when the user asks."""

    def before_batch(cells: float) -> None:
        if stop_requested():
            raise InterruptedException
        report(meter.before_batch(cells))

    return before_batch


def _sample(p: Any, sampler: Any, strength: float, anchor: Tensor, noise: Tensor, conditioning: Tensor) -> Tensor:
    """Calls the sampler so that it runs the last `strength` of the schedule; it sets x itself at the first call."""
    steps = steps_of_stage(p.steps, strength)
    calls = sampler.config.total_steps(1)
    cond, uncond = (conds_of_stage(conds, calls * p.steps, calls * steps) for conds in p.get_conds())
    if not isinstance(sampler, sd_samplers_timesteps.CompVisSampler):
        with replaced(p, denoising_strength=steps / (p.steps + 0.5)):
            return sampler.sample_img2img(p, anchor, noise, cond, uncond, steps, conditioning)
    if steps == p.steps:
        # sample_img2img would drop the first timestep of the schedule
        sampler.model_wrap_cfg.init_latent = anchor
        return sampler.sample(p, noise.clone(), cond, uncond, image_conditioning=conditioning)
    # it would begin a timestep too low
    steps += 1
    with replaced(p, denoising_strength=steps / (p.steps + 0.5)):
        return sampler.sample_img2img(p, anchor, noise, cond, uncond, steps, conditioning)


def _image_conditioning(p: Any, anchor: Tensor, plan: Plan | None) -> Tensor:
    """Returns what an inpainting, depth, editing or unCLIP model gets besides the prompt.

    In img2img, and after hires fix, it shows the source picture and must follow the stage's size. In txt2img it says
    that everything is to be painted, which is as true of every view at the base picture's size: the base pass's own is
    taken, so that no big picture is encoded.
    """
    shown = getattr(p, "image_conditioning", None)
    if shown is not None:
        return image_conditioning_for(shown, anchor, plan.crop if plan else None)
    used = (getattr(p.sampler, "sampler_extra_args", None) or {}).get("image_cond")
    return used if used is not None else p.txt2img_image_conditioning(anchor)
