"""Shared parts of the training scripts: averaged weights, learning rate, resumable state, progress, command line."""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import nn

from trial.progress import progress_bar

T = TypeVar("T")


def parser(text: str, steps: int, batch: int, rate: float, decay: int) -> argparse.ArgumentParser:
    """Returns the options of all scripts. Their learning rate is `rate_at`."""
    options = argparse.ArgumentParser(description=text)
    options.add_argument("--out", type=Path, default=Path("runs/collage"), help="folder of states and logs")
    options.add_argument("--steps", type=int, default=steps)
    options.add_argument("--batch", type=int, default=batch)
    options.add_argument("--rate", type=float, default=rate, help="highest learning rate")
    options.add_argument("--decay", type=int, default=decay, help="steps at the end in which the learning rate falls")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--save-every", type=int, default=250)
    options.add_argument("--float32", action="store_true", help="faster on a CPU without bfloat16 instructions")
    options.add_argument("--eager", action="store_true", help="without torch.compile (several times slower on a CPU)")
    return options


def prepare(args: argparse.Namespace) -> torch.device:
    """Sets seeds and threads, creates the output folder and returns the device."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    return torch.device(args.device)


def autocast(args: argparse.Namespace) -> torch.autocast:
    """Returns the context in which the networks run: bfloat16, or float32 with --float32."""
    return torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=not args.float32)


def rate_at(step: int, args: argparse.Namespace, warmup: int = 100) -> float:
    """Returns the learning rate: a linear warm-up to `args.rate`, constant, then linear to 2 %.

    The decay covers the last `args.decay` of `args.steps`.
    """
    rise, fall = (step + 1) / warmup, (args.steps - step) / max(args.decay, 1)
    return args.rate * max(min(rise, fall, 1.0), 0.02)


CHECK_STEP = 20
"""At this step, weights that start at zero no longer block any gradient."""


class Trainee:
    """A module, the moving average of its weights, and its optimiser. They are saved and restored together."""

    def __init__(self, module: nn.Module, path: Path, decay: float) -> None:
        self.module, self.path, self.decay = module, path, decay
        self.average = copy.deepcopy(module).requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            [p for p in module.parameters() if p.requires_grad], betas=(0.9, 0.99), weight_decay=1e-4
        )
        self.step = 0

    def update(self, loss: torch.Tensor, rate: float) -> None:
        """Runs one step of the optimiser and of the average."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.apply_gradients(rate)

    def apply_gradients(self, rate: float) -> None:
        """Runs one step with the gradients of the parameters."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        if self.step == CHECK_STEP:
            self._check_gradients()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        # otherwise a new average would contain the random initial weights for long
        weight = 1.0 - min(self.decay, self.step / (self.step + 10.0))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.module.parameters()), weight)

    def _check_gradients(self) -> None:
        """Raises RuntimeError if a parameter gets no gradient. Compilers have lost the gradients of whole branches."""
        idle = [
            name
            for name, parameter in self.module.named_parameters()
            if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
        ]
        if idle:
            raise RuntimeError(f"{len(idle)} parameters do not learn, such as {idle[0]}; try --eager")

    def save_when_due(self, args: argparse.Namespace) -> None:
        """Saves at regular steps and after the last one."""
        if self.step % args.save_every == 0 or self.step == args.steps:
            self.save()

    def save(self) -> None:
        """Writes the state atomically, because a run may be interrupted."""
        state = {
            "module": self.module.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)

    def restore(self) -> bool:
        """Restores the state. Returns whether there is one."""
        if not self.path.exists():
            return False
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        self.module.load_state_dict(state["module"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]
        return True


def averaged(path: Path) -> dict[str, torch.Tensor]:
    """Returns the averaged weights of a training state."""
    return torch.load(path, weights_only=True, map_location="cpu")["average"]


SHOW_EVERY = 20
RECENT = 0.03
"""Weight of one step in the displayed averages."""


class Progress(Generic[T]):
    """Shows the batches of a training as a bar with moving averages of loss and PSNR, and saves states."""

    def __init__(self, batches: Iterable[T], trainee: Trainee, args: argparse.Namespace) -> None:
        self.trainee, self.args = trainee, args
        self.bar = progress_bar(batches, initial=trainee.step, total=args.steps, mininterval=10)
        self.averages: dict[str, float] = {}

    def __iter__(self) -> Iterator[T]:
        return iter(self.bar)

    def after_step(self, loss: torch.Tensor, error: torch.Tensor | None = None) -> None:
        """Counts a finished step.

        `error` is the mean squared error of images in -1..1, if the training compares images.
        """
        for name, value in (("loss", loss), ("error", error)):
            if value is not None:
                before = self.averages.setdefault(name, value.item())
                self.averages[name] += RECENT * (value.item() - before)
        if self.trainee.step % SHOW_EVERY == 0:
            self.bar.set_postfix(self.figures())
        self.trainee.save_when_due(self.args)

    def figures(self) -> dict[str, str]:
        """Returns the figures after the bar. The PSNR is in dB."""
        shown = {"loss": f"{self.averages['loss']:.4f}"}
        if self.averages.get("error"):
            shown["psnr"] = f"{10 * math.log10(4 / self.averages['error']):.2f}"
        return shown
