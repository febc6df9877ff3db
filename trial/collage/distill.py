"""Distils the collages' model into a LoRA for 4 to 8 steps without guidance: python -m trial.collage.distill.

Latent consistency (Luo et al., arXiv 2310.04378 and 2311.05556): the student's prediction at a timestep should equal
its prediction one step later on the path of the guided original. The grid has 50 timesteps.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from torch import Tensor

from trial import lora
from trial.collage.model import make_captions
from trial.collage.train_unet import Batches, Denoiser
from trial.sampling import GUIDANCE, LCM_GRID, consistency, denoised
from trial.schedule import STEPS
from trial.small_model import LORA
from trial.training import Progress, Trainee, autocast, averaged, parser, prepare, rate_at

RANK = 8
SKIP = STEPS // LCM_GRID
HUBER = 0.001
"""The error at which the loss changes from square to absolute."""


def stepped(x: Tensor, eps: Tensor, now: Tensor, after: Tensor, alphas: Tensor) -> Tensor:
    """Computes one DDIM step from the timesteps `now` (B,) to `after` (B,)."""
    power, power_after = (alphas[t][:, None, None, None] for t in (now, after))
    return power_after.sqrt() * denoised(x, eps, power) + (1.0 - power_after).sqrt() * eps


def on_grid(t: Tensor) -> Tensor:
    """Rounds t (B,) up to the grid's timesteps, 19 to 999."""
    return (t // SKIP + 1) * SKIP - 1


class Distillation:
    """The original model and a student, which is a copy with the LoRA's changes.

    Computes targets and loss of a batch.
    """

    def __init__(self, teacher: Denoiser, batches: Batches, guidance: float) -> None:
        self.teacher, self.student = teacher.eval().requires_grad_(False), copy.deepcopy(teacher)
        self.student.unet.requires_grad_(True)
        self.batches, self.guidance, self.alphas = batches, guidance, batches.alphas
        empty = batches.captions.ids[0, -1][None]
        with torch.no_grad():
            self.free = teacher.text(empty)

    def targets(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns x (B, 4, 16, 16) at grid timesteps (B,), its context, and the target of the student's prediction."""
        clean, t, ids, noise = self.batches.clean(step)
        t = on_grid(t)
        after = (t - SKIP).clamp(min=0)
        x = self.batches.noisy(clean, noise, t)
        context = self.teacher.text(ids)
        both = torch.cat([context, self.free.expand_as(context)])
        eps, free = self.teacher.unet(torch.cat([x, x]), torch.cat([t, t]), both).float().chunk(2)
        later = stepped(x, free + self.guidance * (eps - free), t, after, self.alphas)
        said = consistency(later, self.student.unet(later, after, context).float(), after, self.alphas)
        return x, t, context, said

    def loss(self, x: Tensor, t: Tensor, context: Tensor, target: Tensor) -> Tensor:
        """Computes the pseudo-Huber distance between the student's prediction and the target."""
        said = consistency(x, self.student.unet(x, t, context).float(), t, self.alphas)
        return ((said - target) ** 2 + HUBER**2).sqrt().mean() - HUBER


def original(args: argparse.Namespace, words: int) -> Denoiser:
    """Loads the trained model."""
    model = Denoiser(words)
    model.load_state_dict(averaged(args.out / "unet.pt"))
    return model.to(memory_format=torch.channels_last)


def main() -> None:
    """Runs the command line."""
    options = parser(__doc__.splitlines()[0], steps=1500, batch=16, rate=1.5e-3, decay=1400)
    options.add_argument("--guidance", type=float, default=GUIDANCE, help="CFG that is built in")
    options.add_argument("--to", type=Path, default=LORA)
    args = options.parse_args()
    prepare(args)
    captions = make_captions()
    data = torch.load(args.out / "latents.pt", weights_only=True)
    batches = Batches(data, captions, args.batch, args.seed)
    distillation = Distillation(original(args, len(captions.used)), batches, args.guidance)
    teacher, student = distillation.teacher.unet, distillation.student.unet
    trainee = Trainee(lora.Lora(teacher, RANK), args.out / "lora.pt", decay=0.98)
    trainee.restore()
    progress = Progress(range(trainee.step, args.steps), trainee, args)
    for step in progress:
        trainee.module.merge(teacher, student)
        with autocast(args):
            with torch.no_grad():
                batch = distillation.targets(step)
            loss = distillation.loss(*batch)
        loss.backward()
        trainee.module.take_gradients(student)
        trainee.apply_gradients(rate_at(step, args))
        progress.after_step(loss)
    lora.save(trainee.average, args.to)


if __name__ == "__main__":
    main()
