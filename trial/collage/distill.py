"""Distils a model of collages into a LoRA for 4 to 8 steps without guidance: python -m trial.collage.distill.

This is latent consistency distillation (Luo et al., arXiv 2310.04378 and 2311.05556). The student's prediction at a
timestep should equal its prediction one step later, where the original model with guidance makes this step. The steps
use a grid of 50 timesteps.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call

from trial import lora
from trial.collage.model import make_captions
from trial.collage.train_unet import Batches
from trial.sampling import GUIDANCE, LCM_GRID, consistency, denoised
from trial.schedule import STEPS
from trial.small_model import CHECKPOINT, LORA, SmallModel, load
from trial.training import Trainee, parser, train

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
    """The original model, and the student: its UNet with the changes of a LoRA."""

    def __init__(self, teacher: SmallModel, factors: lora.Lora, batches: Batches, guidance: float) -> None:
        self.teacher, self.factors, self.batches, self.guidance = teacher, factors, batches, guidance
        self.alphas = batches.alphas.to(teacher.device)
        self.free = teacher.encode_prompts([""])

    def student(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Returns the clean latent (B, 4, 16, 16) that the student predicts from x at the timesteps (B,)."""
        eps = functional_call(self.teacher.unet, self.factors.weights(self.teacher.unet), (x, t, context))
        return consistency(x, eps.float(), t, self.alphas)

    @torch.no_grad()
    def targets(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns x (B, 4, 16, 16) at grid timesteps (B,), its context, and the target of the student's prediction."""
        clean, t, ids, noise = self.batches.clean(step)
        t = on_grid(t)
        x, t, ids = (part.to(self.teacher.device) for part in (self.batches.noisy(clean, noise, t), t, ids))
        context = self.teacher.text(self.batches.captions.used.to(ids)[ids])
        both = torch.cat([context, self.free.expand_as(context)])
        eps, free = self.teacher.unet(torch.cat([x, x]), torch.cat([t, t]), both).float().chunk(2)
        after = (t - SKIP).clamp(min=0)
        later = stepped(x, free + self.guidance * (eps - free), t, after, self.alphas)
        return x, t, context, self.student(later, after, context)

    def loss(self, x: Tensor, t: Tensor, context: Tensor, target: Tensor) -> Tensor:
        """Computes the pseudo-Huber distance between the student's prediction and the target."""
        return ((self.student(x, t, context) - target) ** 2 + HUBER**2).sqrt().mean() - HUBER


def main() -> None:
    """Runs the command line."""
    options = parser(__doc__.splitlines()[0], steps=1500, rate=1.5e-3, decay=1400)
    options.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="the model to distill")
    options.add_argument("--guidance", type=float, default=GUIDANCE, help="CFG scale that the LoRA reproduces")
    options.add_argument("--to", type=Path, default=LORA)
    args = options.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    model = load(args.checkpoint, args.device)
    data = torch.load(args.out / "latents.pt", weights_only=True)
    batches = Batches(data, make_captions(), args.batch, args.seed)
    trainee = Trainee(lora.Lora(model.unet, RANK).to(args.device), args.out / "lora.pt", decay=0.98)
    distillation = Distillation(model, trainee.module, batches, args.guidance)
    train(trainee, lambda step: distillation.loss(*distillation.targets(step)), args)
    lora.save(trainee.average, args.to)


if __name__ == "__main__":
    main()
