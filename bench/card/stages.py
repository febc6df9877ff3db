"""Measures calls of the model, and compares calls of a stage's denoiser with the same calls of the bare UNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.card.device import Card, Measured
from bench.card.models import EMBEDDERS, Model
from bench.card.report import Report, Row, gigabytes
from lib_demofusion.host.common.memory import device_memory
from lib_demofusion.method.batching import MOST_VIEWS, ViewBatches
from lib_demofusion.method.conditioning import Frame, SizeVectors, cond_for_views
from lib_demofusion.method.plan import StagePlan, make_plan
from lib_demofusion.method.residual import VarianceExploding
from lib_demofusion.method.sampler_steps import StepDetector
from lib_demofusion.method.schedule import schedule_steps, steps_of_stage, weights_at
from lib_demofusion.method.stage import SamplerTraits, StageRun, make_anchor
from lib_demofusion.method.views import View
from lib_demofusion.settings.fields import Settings
from lib_demofusion.settings.presets import PRESETS
from lib_demofusion.settings.reading import parse_settings

VIEWS = (1, 2, 4, 8, 16)
STEPS, CFG = 20, 7.0
QUICK = 1.0
"""An action that takes fewer seconds than this is measured several times, and the minimum counts."""


class StageCalls:
    """The slowest model call of a preset's last stage, as the webui's backend makes it."""

    def __init__(self, model: Model, preset: str, scale: int) -> None:
        settings = parse_settings({"preset": preset, "scale": scale})
        plan = make_plan(settings, model.kind.native)
        self.model, self.stage = model, plan.stages[-1]
        self.anchor = make_anchor(torch.randn(1, 4, *model.kind.native, device=model.device), plan, self.stage)
        noise = torch.randn_like(self.anchor)
        traits = SamplerTraits(VarianceExploding(model.sigma_to_t), StepDetector())
        self.run = StageRun(self.stage, settings, self.anchor, noise, traits)
        self.batches = ViewBatches(settings.view_batch, device_memory())
        self._vectors = SizeVectors(EMBEDDERS, Frame(plan.pixels)) if "vector" in model.cond else None
        self._ones = torch.ones(2, 1, 1, 1, device=model.device)
        self._sigma = model.sigmas[costliest_timestep(self.stage, settings)]
        self.x = torch.zeros_like(self.anchor)
        self.shapes: list[torch.Size] = []
        """The shapes of the crops of every evaluation since the list was cleared."""

    @property
    def evaluations(self) -> int:
        """The number of evaluated views since `shapes` was cleared."""
        return sum(shape[0] for shape in self.shapes) // 2

    def choose_views(self) -> None:
        """Evaluates views of both paths and a batch, which chooses the automatic view batch and loads the kernels."""
        self.run.before_call(self.x, self._sigma)
        rows = torch.cat([self.x, self.x])
        paths: list[Sequence[View]] = [self.run.local if self.run.weights.dilated < 1 else []]
        paths += [self.run.dilated] if self.run.weights.dilated > 0 else []
        for views in paths:
            list(self.batches.predictions(self._evaluate, [(view, rows) for view in views[: MOST_VIEWS + 1]], 2))
        self.shapes.clear()

    def call(self) -> None:
        """Makes one call of the stage's denoiser, with the sampler's step around it."""
        self.shapes.clear()
        self.run.before_call(self.x, self._sigma)
        rows = torch.cat([self.x, self.x])
        cond, uncond = self.run.denoise(self._evaluate, rows, self._ones, self.batches, copies=2).chunk(2)
        denoised = uncond + CFG * (cond - uncond)
        self.x = denoised + 0.95 * (self.x - denoised)

    def bare_calls(self) -> None:
        """Evaluates the UNet on crops of the same number and shapes in the same batches, and does nothing else."""
        for shape in self.shapes:
            crops = self.x.new_zeros(()).expand(shape)
            cond = {key: value.repeat(shape[0] // 2, *(1 for _ in value.shape[1:])) for key, value in self.cond.items()}
            self.model(crops, self._sigma.repeat(shape[0]), cond)

    @property
    def cond(self) -> dict[str, Tensor]:
        """The conds of cond and uncond."""
        return self.model.cond

    def _evaluate(self, crops: Tensor, views: Sequence[View], rows: slice) -> Tensor:
        """Evaluates a batch of views like lib_demofusion.host.backends.webui_denoiser.FusedModel."""
        self.shapes.append(crops.shape)
        cond = cond_for_views(self.cond, views, rows, self.stage.size, (crops.shape[-2], crops.shape[-1]))
        if self._vectors is not None:
            cond["vector"] = self._vectors.for_views(self.cond["vector"][rows], views)
        return self.model(crops, self._sigma.repeat(len(crops)), cond)


def costliest_timestep(stage: StagePlan, settings: Settings) -> int:
    """Returns the timestep at which a stage evaluates the most cells, with timesteps spaced as in `method.costs`.

    The presets skip one of the two paths at other timesteps.
    """
    steps = schedule_steps(STEPS, settings)
    run = steps_of_stage(steps, settings.denoising_strength)
    timesteps = [round(999 * run / steps * (1 - i / max(run - 1, 1))) for i in range(run)]
    return max(timesteps, key=lambda t: stage.cells_at(weights_at(t, settings).dilated))


def measure_calls(report: Report, card: Card, model: Model, share: float) -> None:
    """Adds a row for each view batch: a call of the bare UNet with cond and uncond of all its views."""
    seconds: dict[int, float] = report.found.setdefault(f"{model.kind.name} seconds", {})
    sigma = model.sigmas[500]

    def rows(views: int) -> Row:
        x = torch.randn(2 * views, 4, *model.kind.native, device=card.device)
        cond = {key: value.repeat(views, *(1 for _ in value.shape[1:])) for key, value in model.cond.items()}

        def call() -> None:
            model(x, sigma.repeat(len(x)), cond)

        if views * seconds.get(views // 2, 0) < QUICK:
            call()  # loads the kernels
        found = _fastest(card, call)
        seconds[views] = found.seconds / views
        if views == 1:
            report.found[f"{model.kind.name} base"] = found.peak
            report.found["call"] = f"{found.seconds:.3f} s ({model.kind.name})"
        return Row(f"{found.seconds:.3f}", f"{seconds[views]:.3f} a view", gigabytes(found.peak))

    for views in VIEWS:
        name = f"{model.kind.name}: model call with {views} view{'s' * (views > 1)}"
        if not report.attempt(name, lambda views=views: rows(views), 2 * views * seconds.get(views // 2, 0), share):
            break


def _fastest(card: Card, action: Callable[[], object]) -> Measured:
    """Measures an action. A quick action is measured several times."""
    found = [card.measure(action)]
    while len(found) < card.repeats and found[0].seconds < QUICK:
        found.append(card.measure(action))
    return min(found, key=lambda each: each.seconds)


def measure_stages(report: Report, card: Card, model: Model, share: float) -> None:
    """Adds rows for one model call of every preset's stage at every scale, and for the automatic view batch."""
    chosen: set[int] = set()

    def row(preset: str, scale: int) -> Row:
        stage = StageCalls(model, preset, scale)
        stage.choose_views()
        best = _fastest(card, stage.call)
        bare = min(card.seconds(stage.bare_calls) for _ in range(card.repeats if best.seconds < QUICK else 1))
        chosen.add(stage.batches.views)
        return _stage_row(report, stage, (preset, scale), best, bare)

    calls = report.found.get(f"{model.kind.name} seconds", {})
    for scale in model.kind.scales:
        for preset in reversed(PRESETS):
            settings = parse_settings({"preset": preset, "scale": scale})
            views = make_plan(settings, model.kind.native).stages[-1]
            paths = views.local_count, views.dilated_count
            evaluations = sum(2 * count + min(count, MOST_VIEWS + 1) for count in paths)
            estimate = evaluations * min(calls.values(), default=0.0)
            name = f"{model.kind.name}: {preset} {scale}x, one model call"
            report.attempt(name, lambda preset=preset, scale=scale: row(preset, scale), estimate, share)
    if chosen and calls:
        report.attempt(f"{model.kind.name}: automatic view batch", lambda: _automatic_row(report, calls, chosen))


def _stage_row(report: Report, stage: StageCalls, which: tuple[str, int], best: Measured, bare: float) -> Row:
    name, (preset, scale) = stage.model.kind.name, which
    overhead = f"{best.seconds / bare - 1:+.2%}"
    if preset == "Balanced":
        report.found[f"overhead {scale}x"] = overhead
        report.found["waits"] = "-" if best.waits is None else str(best.waits)
    base = report.found.get(f"{name} base")
    peak = gigabytes(best.peak) + (f" (base pass {gigabytes(base)})" if base else "")
    waits = "waits not counted" if best.waits is None else f"waits for the card: {best.waits}"
    remarks = f"{stage.evaluations} views, up to {stage.batches.views} at once, {waits}"
    return Row(f"{best.seconds:.3f}", f"bare UNet {bare:.3f}, overhead {overhead}", peak, remarks)


def _automatic_row(report: Report, calls: dict[int, float], chosen: set[int]) -> Row:
    fastest, text = min(calls, key=calls.__getitem__), ", ".join(map(str, sorted(chosen)))
    report.found["views"] = f"{text} / {fastest}"
    losses = [f"{calls[views] / calls[fastest] - 1:+.1%} with {views}" for views in sorted(chosen) if views in calls]
    return Row(compared=f"fastest: {fastest} views", remarks=f"chosen: {text}; time a view {', '.join(losses)}")
