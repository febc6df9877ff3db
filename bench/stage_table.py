"""Times whole stages beside the same evaluations of the bare UNet: `python bench/overhead.py --stages`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.resident import Resident, given_back_when_freed
from bench.unets import Unet
from lib_demofusion.method.batching import Memory, UnknownMemory, ViewBatches
from lib_demofusion.method.plan import StagePlan, make_plan
from lib_demofusion.method.residual import VarianceExploding
from lib_demofusion.method.stage import SamplerTraits, StageRun, make_anchor
from lib_demofusion.method.step_gate import StepGate
from lib_demofusion.method.views import LocalView, View
from lib_demofusion.settings.fields import Settings


class CudaMemory:
    """What the automatic view batch is told of a CUDA device, as by lib_demofusion.host.memory."""

    def free(self) -> int | None:
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0] + cached)

    def begin(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        return int(torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated())

    def release(self) -> None:
        torch.cuda.empty_cache()


@dataclass
class Bench:
    """What is timed: a UNet on a device, at stages of `scales` times its native size (h, w) in latent cells."""

    unet: Unet
    native: tuple[int, int]
    scales: Sequence[int]
    steps: int
    device: str
    dtype: torch.dtype
    limit: int | None = None
    """Bytes that the automatic batch may take on a CPU, which else tells it nothing and gets batches of one view."""
    inside: float = field(default=0.0, init=False)
    """Seconds within the UNet so far, where the clock shows them."""
    count: int = field(default=0, init=False)
    """Evaluations (cond and uncond of a view) so far."""

    def evaluate(self, crops: Tensor) -> Tensor:
        """Returns the UNet's result for crops (N, 4, h, w)."""
        begin = time.process_time()
        result = self.unet(crops)
        self.count += len(crops) // 2
        self.inside += time.process_time() - begin
        return result

    def clocked(self, action: Callable[[], object]) -> float:
        """Returns the seconds of an action: of the GPU, or this process's own on a CPU, which others may share."""
        if self.device != "cuda":
            begin = time.process_time()
            action()
            return time.process_time() - begin
        torch.cuda.synchronize()
        begin = time.perf_counter()
        action()
        torch.cuda.synchronize()
        return time.perf_counter() - begin

    def peak(self, action: Callable[[], object]) -> int:
        """Returns the most bytes that an action held at once beyond those that were there."""
        memory: Memory = CudaMemory() if self.device == "cuda" else Resident()
        memory.begin()
        action()
        return memory.peak()

    def view_batches(self) -> Iterator[tuple[str, int, Memory]]:
        """Yields name, setting (0 is automatic) and memory of each view batch to be timed."""
        known = CudaMemory() if self.device == "cuda" else UnknownMemory()
        for views in (1, 4, 16):
            yield str(views), views, known
        yield "automatic", 0, known
        if self.device != "cuda" and self.limit is not None:
            yield f"automatic, {self.limit >> 20} MiB free", 0, Resident(self.limit)


def run_stage(bench: Bench, stage: StagePlan, anchor: Tensor, steps: int, batches: ViewBatches) -> None:
    """Runs Euler steps of a stage on an anchor (1, 4, H, W) as the host does."""

    def evaluate(crops: Tensor, views: Sequence[View], rows: slice) -> Tensor:
        return bench.evaluate(crops)

    space = VarianceExploding(lambda sigma: 999 * sigma / 14.6)
    run = StageRun(stage, Settings(), anchor, torch.randn_like(anchor), SamplerTraits(space, StepGate()))
    x = torch.zeros_like(anchor)
    sigmas = torch.linspace(14.6, 0.1, steps, device=anchor.device)
    for sigma, following in zip(sigmas, [*sigmas[1:], sigmas.new_zeros(())]):
        run.before_call(x, sigma)
        denoised = run.denoise(evaluate, torch.cat([x, x]), 1.0, batches, copies=2).chunk(2)[0]
        x.add_((x - denoised) / sigma * (following - sigma))


def bare(unet: Unet, rows: Tensor, evaluations: int, views: int) -> None:
    """Evaluates the UNet as often, on batches of as many views, and nothing else."""
    for first in range(0, evaluations, views):
        count = min(views, evaluations - first)
        unet(rows.repeat(count, 1, 1, 1))


HEAD = ("pixels", "view batch", "evaluations", "stage", "bare UNet", "difference", "outside the UNet", "peak", "bare")


def rows_of(bench: Bench) -> Iterator[str]:
    """Yields the lines of the table, one for each size and view batch."""
    yield "| " + " | ".join(HEAD) + " |"
    yield "|" + "---|" * len(HEAD)
    for scale in bench.scales:
        plan = make_plan(Settings(scale=scale, stages=f"1,{scale}"), bench.native)
        (stage,) = plan.stages
        native = torch.randn(1, 4, *bench.native, device=bench.device, dtype=bench.dtype)
        anchor, pair = make_anchor(native, plan, stage), torch.cat([native, native])
        bare(bench.unet, pair, 1, 1)
        for name, views, memory in bench.view_batches():
            yield _line(bench, stage, anchor, pair, name, ViewBatches(views, memory))


def _line(bench: Bench, stage: StagePlan, anchor: Tensor, pair: Tensor, name: str, batches: ViewBatches) -> str:
    """Returns the row of one view batch: memory in one pass, and time in another."""
    with given_back_when_freed() if bench.device != "cuda" else nullcontext():
        # an automatic batch becomes what it will be
        list(batches.predictions(lambda crops, *_: bench.evaluate(crops), [(LocalView(0, 0, *stage.window), pair)], 2))
        size = batches.views
        peak = bench.peak(lambda: run_stage(bench, stage, anchor, 1, batches))
        bare_peak = bench.peak(lambda: bare(bench.unet, pair, size, size))
    bench.inside, bench.count = 0.0, 0
    seconds = bench.clocked(lambda: run_stage(bench, stage, anchor, bench.steps, batches))
    outside, count = seconds - bench.inside, bench.count
    plain = bench.clocked(lambda: bare(bench.unet, pair, count, size))
    height, width = stage.pixels
    cells = (
        f"{width}x{height}",
        name + ("" if name == str(size) else f": {size}"),
        f"{count}",
        f"{seconds:.2f} s",
        f"{plain:.2f} s",
        f"{seconds / plain - 1:+.1%}",
        "" if bench.device == "cuda" else f"{outside / seconds:.2%}",
        f"{peak / 2**20:.0f} MiB",
        f"{bare_peak / 2**20:.0f} MiB",
    )
    return "| " + " | ".join(cells) + " |"
