"""Times whole stages beside the same evaluations of the bare UNet: `python bench/overhead.py --stages`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.peak_bytes import PeakBytes
from lib_demofusion.batching import Memory, UnknownMemory, ViewBatches
from lib_demofusion.plan import CELL, StagePlan, make_plan
from lib_demofusion.residual import VarianceExploding
from lib_demofusion.settings import Settings
from lib_demofusion.stage import StageRun, make_anchor
from lib_demofusion.step_gate import StepGate
from lib_demofusion.views import View

Unet = Callable[[Tensor], Tensor]
"""Denoises rows (N, 4, h, w): cond and uncond of each view."""

VIEW_BATCHES = (1, 4, 16, 0)
"""0 is automatic."""


class CudaMemory:
    """What the automatic view batch is told of a CUDA device, as by lib_demofusion.host.memory."""

    def free(self) -> int | None:
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0] + cached)

    def begin(self) -> None:
        torch.cuda.reset_peak_memory_stats()
        self._before = torch.cuda.memory_allocated()

    def peak(self) -> int:
        return int(torch.cuda.max_memory_allocated() - self._before)

    def release(self) -> None:
        torch.cuda.empty_cache()


def device_memory(device: str) -> Memory:
    """Returns the memory that the automatic batch is measured in; a CPU tells nothing, its batch is one view."""
    return CudaMemory() if device == "cuda" else UnknownMemory()


def run_stage(unet: Unet, stage: StagePlan, anchor: Tensor, steps: int, batches: ViewBatches) -> int:
    """Runs the Euler steps of a stage on an anchor (B, 4, H, W) as the host does; returns the evaluations made."""
    evaluations = 0

    def evaluate(crops: Tensor, views: Sequence[View], rows: slice) -> Tensor:
        nonlocal evaluations
        evaluations += len(views)
        return unet(crops)

    space = VarianceExploding(lambda sigma: 999 * sigma / 14.6)
    run = StageRun(stage, Settings(), anchor, torch.randn_like(anchor), space, StepGate(), stochastic=False)
    x = torch.zeros_like(anchor)
    sigmas = torch.linspace(14.6, 0.1, steps, device=anchor.device)
    for sigma, following in zip(sigmas, [*sigmas[1:], sigmas.new_zeros(())]):
        run.before_call(x, sigma)
        denoised = run.denoise(evaluate, torch.cat([x, x]), 1.0, batches, copies=2).chunk(2)[0]
        x.add_((x - denoised) / sigma * (following - sigma))
    return evaluations


def bare(unet: Unet, rows: Tensor, evaluations: int, views: int) -> None:
    """Evaluates the UNet as often, on batches of as many views, and nothing else."""
    for first in range(0, evaluations, views):
        count = min(views, evaluations - first)
        unet(rows.repeat(count, 1, 1, 1))


def clocked(action: Callable[[], object], device: str) -> float:
    """Returns the seconds of an action: of the GPU, or of the processor's own time on a CPU, which others share."""
    if device != "cuda":
        begin = time.process_time()
        action()
        return time.process_time() - begin
    torch.cuda.synchronize()
    begin = time.perf_counter()
    action()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def peak_bytes(action: Callable[[], object], device: str) -> int:
    """Returns the most bytes of tensors that the action held at once beyond those that were there."""
    if device != "cuda":
        with PeakBytes() as bytes_:
            action()
        return bytes_.peak
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    action()
    return int(torch.cuda.max_memory_allocated() - before)


def rows_of(
    unet: Unet, native: tuple[int, int], scales: Sequence[int], steps: int, device: str, dtype: torch.dtype
) -> list[str]:
    """Returns the lines of the table, one for each size and view batch."""
    lines = [
        f"whole stages of {steps} Euler steps on a {'GPU' if device == 'cuda' else 'CPU (processor time)'}, {dtype}",
        "| pixels | view batch | evaluations | stage | bare UNet | overhead | peak of the stage | of the bare UNet |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for scale in scales:
        plan = make_plan(Settings(scale=scale, stages=f"1,{scale}"), native)
        (stage,) = plan.stages
        anchor = make_anchor(torch.randn(1, 4, *native, device=device, dtype=dtype), plan, stage)
        one = torch.randn(2, 4, *native, device=device, dtype=dtype)
        run_stage(unet, stage, anchor, 1, ViewBatches(4))
        lines += [_line(unet, stage, anchor, one, steps, views, device) for views in VIEW_BATCHES]
    return lines


def _line(unet: Unet, stage: StagePlan, anchor: Tensor, one: Tensor, steps: int, views: int, device: str) -> str:
    memory = device_memory(device)
    batches = ViewBatches(views, memory)
    count = run_stage(unet, stage, anchor, 1, batches)
    evaluations = count * steps
    size = batches.views
    whole = clocked(lambda: run_stage(unet, stage, anchor, steps, batches), device)
    plain = clocked(lambda: bare(unet, one, evaluations, size), device)
    held = peak_bytes(lambda: run_stage(unet, stage, anchor, 1, ViewBatches(size)), device)
    least = peak_bytes(lambda: bare(unet, one, size, size), device)
    height, width = (n * CELL for n in stage.size)
    cells = (
        f"{width}x{height}",
        f"{views or 'automatic'}" + ("" if size == views else f" ({size})"),
        f"{evaluations}",
        f"{whole:.2f} s",
        f"{plain:.2f} s",
        f"{(whole - plain) / plain:+.1%}",
        f"{held / 2**20:.0f} MiB",
        f"{least / 2**20:.0f} MiB",
    )
    return "| " + " | ".join(cells) + " |"
