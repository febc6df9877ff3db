"""Measures DemoFusion's own cost without its model: `python -m bench.overhead`.

It runs one sampler step of a stage at growing sizes, with a model that returns its input, and prints time and bytes.
The share is relative to the same number of evaluations of SDXL's UNet. Pass their duration with `--evaluation-seconds`,
or measure it here with `--unet`. The UNet has random weights, which are as slow as trained ones. It needs some 11 GB of
memory in float32, and minutes on a CPU. `python -m bench.card` compares stages with the bare UNet.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.card.models import SDXL, Model
from bench.peak_bytes import PeakBytes
from lib_demofusion.method.batching import ViewBatches
from lib_demofusion.method.plan import CELL, make_plan
from lib_demofusion.method.residual import VarianceExploding
from lib_demofusion.method.sampler_steps import StepDetector
from lib_demofusion.method.stage import SamplerTraits, StageRun, finish_stage, make_anchor
from lib_demofusion.method.views import View
from lib_demofusion.settings.fields import MAX_SCALE, Settings

NATIVE = (128, 128)
"""SDXL's own latent, 1024x1024 pixels."""

HEAD = ("pixels", "evaluations", "own time a step", "an evaluation", "ns a pixel", "own peak", "latents", "share")
"""The share is relative to the whole step, including the UNet."""


def null_model(crops: Tensor, views: Sequence[View], rows: slice) -> Tensor:
    """Takes no time, so that only DemoFusion's own time is measured."""
    return crops


def one_step(scale: int, device: str, dtype: torch.dtype, view_batch: int) -> tuple[float, int, int]:
    """Returns seconds, peak bytes and evaluations of one sampler step at `scale` times the native size."""
    # above eight times the base grows instead, while the windows keep the native size
    settings = Settings(scale=min(scale, MAX_SCALE), tile_size=NATIVE[0])
    base = (NATIVE[0] * scale // int(settings.scale), NATIVE[1] * scale // int(settings.scale))
    plan = make_plan(settings, base)
    stage = plan.stages[-1]
    anchor = make_anchor(torch.randn(1, 4, *base, device=device, dtype=dtype), plan, stage)
    space = VarianceExploding(lambda sigma: torch.full_like(sigma, 500.0))
    run = StageRun(stage, settings, anchor, torch.randn_like(anchor), SamplerTraits(space, StepDetector()))
    x, level = torch.zeros_like(anchor), torch.tensor(2.0, device=device)
    # the host passes the latent to its model twice, for cond and uncond
    twice = torch.cat([x, x])

    def step() -> None:
        run.before_call(x, level)
        run.denoise(null_model, twice, 1.0, ViewBatches(view_batch), copies=2)

    step()
    seconds = min(timed(step, device) for _ in range(3))
    with PeakBytes() as bytes_:
        step()
    finish_stage(x, anchor)
    return seconds, bytes_.peak, stage.cells_at(0.5) // math.prod(NATIVE)


def timed(action: Any, device: str) -> float:
    """Returns the duration of `action` in seconds.

    On a CPU it is the process's own time, because other processes may share the CPU.
    """
    clock = time.perf_counter if device == "cuda" else time.process_time
    begin = clock()
    action()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - begin


def sdxl_evaluation(device: str, dtype: torch.dtype) -> float:
    """Returns the duration of one evaluation (cond and uncond) of a UNet with SDXL's size at its native size."""
    model = Model(SDXL, torch.device(device), dtype)
    latent = torch.randn(2, 4, *NATIVE, device=device)

    def evaluate() -> None:
        model(latent, model.sigmas[[500]].repeat(2), model.cond)

    repeats = 3 if device == "cuda" else 1
    if device == "cuda":
        evaluate()
    return min(timed(evaluate, device) for _ in range(repeats))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scales", type=int, nargs="+", default=[2, 4, 8, 16], help="against 1024 pixels")
    parser.add_argument("--view-batch", type=int, default=4)
    parser.add_argument("--unet", action="store_true", help="time a UNet of SDXL's size on this machine")
    parser.add_argument("--evaluation-seconds", type=float, help="of one UNet evaluation, measured elsewhere")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.float32
    with torch.no_grad():
        evaluation = sdxl_evaluation(device, dtype) if arguments.unet else arguments.evaluation_seconds
        if evaluation:
            print(f"one evaluation of the UNet: {evaluation:.3f} s on {device}, {dtype}")
        print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
        for scale in arguments.scales:
            seconds, peak, evaluations = one_step(scale, device, dtype, arguments.view_batch)
            print(row(scale, seconds, peak, evaluations, evaluation))


def row(scale: int, seconds: float, peak: int, evaluations: int, evaluation: float | None) -> str:
    """Returns one line of the table. One latent contains cond and uncond, as in the host."""
    side = NATIVE[0] * scale
    latent = 2 * 4 * side * side * 4
    nanoseconds = 1e9 * seconds / (side * CELL) ** 2
    share = f"{seconds / (seconds + evaluations * evaluation):.4%}" if evaluation else "?"
    cells = (
        f"{side * CELL}x{side * CELL}",
        f"{evaluations}",
        f"{1000 * seconds:.0f} ms",
        f"{1000 * seconds / evaluations:.2f} ms",
        f"{nanoseconds:.1f}",
        f"{peak / 2**20:.0f} MiB",
        f"{peak / latent:.2f}",
        share,
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
