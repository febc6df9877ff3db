"""Provides the training loop that the UNet and the LoRA share: averaged weights, learning rate, resumable state."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from trial.progress import progress_bar

WARM_UP, SAVE_EVERY = 100, 250
"""Number of steps in which the learning rate rises, and number of steps between two saved states."""


def parser(text: str, steps: int, rate: float, decay: int) -> argparse.ArgumentParser:
    """Returns the options of both trainings. Their learning rate is `rate_at`."""
    options = argparse.ArgumentParser(description=text)
    options.add_argument("--out", type=Path, default=Path("runs/collage"), help="folder of latents.pt and of states")
    options.add_argument("--steps", type=int, default=steps)
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--rate", type=float, default=rate, help="maximum learning rate")
    options.add_argument("--decay", type=int, default=decay, help="number of steps at the end in which the rate falls")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument(
        "--float32", action="store_true", help="train in float32: faster on a CPU without bfloat16 instructions"
    )
    return options


def rate_at(step: int, args: argparse.Namespace) -> float:
    """Returns the learning rate: a linear warm-up to `args.rate`, constant, then linear to 2 %.

    The decay covers the last `args.decay` of `args.steps`.
    """
    rise, fall = (step + 1) / WARM_UP, (args.steps - step) / max(args.decay, 1)
    return args.rate * max(min(rise, fall, 1.0), 0.02)


class Trainee:
    """A module, the moving average of its weights, and its optimiser. They are saved and restored together."""

    def __init__(self, module: nn.Module, path: Path, decay: float) -> None:
        self.module, self.path, self.decay = module, path, decay
        self.average = copy.deepcopy(module).requires_grad_(False)
        self.optimiser = torch.optim.AdamW(module.parameters(), betas=(0.9, 0.99), weight_decay=1e-4)
        self.step = 0
        if path.exists():
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.module.load_state_dict(state["module"])
            self.average.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step = state["step"]

    def update(self, loss: Tensor, rate: float) -> None:
        """Runs one step of the optimiser and of the average."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        # otherwise a new average would contain the random initial weights for long
        weight = 1.0 - min(self.decay, self.step / (self.step + 10.0))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.module.parameters()), weight)

    def save(self) -> None:
        """Writes the state atomically, because a run may be interrupted."""
        state = {name: getattr(self, name).state_dict() for name in ("module", "average", "optimiser")}
        partial = self.path.with_suffix(".partial")
        torch.save({**state, "step": self.step}, partial)
        partial.replace(self.path)


def train(trainee: Trainee, loss_of: Callable[[int], Tensor], args: argparse.Namespace) -> None:
    """Trains from the step of the trainee to the last one. `loss_of` computes the loss of a step."""
    bar = progress_bar(range(trainee.step, args.steps), initial=trainee.step, total=args.steps, mininterval=10)
    mean = None
    for step in bar:
        with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=not args.float32):
            loss = loss_of(step)
        trainee.update(loss, rate_at(step, args))
        mean = loss.item() if mean is None else 0.97 * mean + 0.03 * loss.item()
        bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
        if trainee.step % SAVE_EVERY == 0 or trainee.step == args.steps:
            trainee.save()


def averaged(path: Path) -> dict[str, Tensor]:
    """Returns the averaged weights of a training state."""
    return torch.load(path, weights_only=True, map_location="cpu")["average"]
