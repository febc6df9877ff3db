"""Trains the UNet and the text encoder on encoded collages: python -m trial.collage.train_unet.

Zoomed views have the captions of whole views, but appear only at moderate noise. High noise determines the subject of
an image, so samples of native size show one whole subject. A window of a larger image, whose content is already visible
in the noise, is still familiar to the model.

The learning rate is constant until the last --decay steps, so you can extend a run: with more --steps it continues from
its state.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trial.autoencoder import SCALE_FACTOR
from trial.collage.model import TEMPLATE_SHARES, TEXT, UNET, ZOOMED_SHARE, Captions, make_captions
from trial.schedule import STEPS, alphas_cumprod
from trial.text import TextConfig, TextEncoder
from trial.training import Progress, Trainee, autocast, parser, prepare, rate_at
from trial.unet import SpatialTransformer, UNet, UNetConfig

WARM_UP = 200
EMPTY_SHARE = 0.1
ZOOMED_NONE_ABOVE, ZOOMED_FULL_BELOW = 750, 450


class Denoiser(nn.Module):
    """UNet and text encoder together: predicts the noise from x (B, 4, h, w), t (B,) and ids (B, 77)."""

    def __init__(self, words: int, unet: UNetConfig = UNET, text: TextConfig = TEXT) -> None:
        super().__init__()
        self.unet = UNet(unet)
        self.text = TextEncoder(replace(text, vocab_size=words))
        for name, parameter in self.unet.named_parameters():
            if name.endswith(("out_layers.3.weight", "proj_out.weight", "out.2.weight")):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        return self.unet(x, t, self.text(ids))


@dataclass(frozen=True)
class Mix:
    """Shares of the captions' forms and of zoomed views in the batches, and the largest weight of a step."""

    templates: tuple[float, ...] = TEMPLATE_SHARES
    zoomed: float = ZOOMED_SHARE
    weight_limit: float = 12.0


class Batches:
    """Draws random training batches. A step's draw depends only on the seed and the step."""

    def __init__(
        self, data: dict[str, Tensor], captions: Captions, batch: int, seed: int, mix: Mix | None = None
    ) -> None:
        self.data, self.captions, self.batch, self.seed = data, captions, batch, seed
        self.mix = mix or Mix()
        self.shares = torch.tensor(self.mix.templates)
        self.alphas = alphas_cumprod().float()

    def weights(self, t: Tensor) -> Tensor:
        """Returns the loss weights (B,) of the steps t (B,): the inverse signal power up to a limit.

        They convert the error of the noise to that of v (Salimans and Ho, arXiv 2202.00512). Without them, the steps at
        which only the text determines the image have almost no weight, and the model learns to read colours from the
        noise.
        """
        return (1.0 / self.alphas[t]).clamp(max=self.mix.weight_limit)

    def clean(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the inputs of `noisy`: unscaled latents (B, 4, 16, 16), steps (B,), caption ids (B, 77) and noise."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        rand = partial(torch.rand, self.batch, generator=generator)
        t = ((torch.arange(self.batch) + rand()) / self.batch * STEPS).long().clamp(max=STEPS - 1)
        fade = (ZOOMED_NONE_ABOVE - t) / (ZOOMED_NONE_ABOVE - ZOOMED_FULL_BELOW)
        zoomed = rand() < self.mix.zoomed * fade.clamp(0.0, 1.0)
        whole_at, zoomed_at = ((rand() * len(self.data[f"{kind}_x"])).long() for kind in ("whole", "zoomed"))
        pair = self.data["zoomed_x"][zoomed_at], self.data["whole_x"][whole_at]
        clean = torch.where(zoomed[:, None, None, None], *pair)
        label = torch.where(zoomed, self.data["zoomed_label"][zoomed_at], self.data["whole_label"][whole_at])
        template = torch.multinomial(self.shares, self.batch, replacement=True, generator=generator)
        template = template.masked_fill(rand() < EMPTY_SHARE, len(self.shares))
        noise = torch.randn(clean.shape, generator=generator)
        return clean, t, self.captions.ids[label, template], noise

    def noisy(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Adds noise to unscaled latents and returns latents (B, 4, 16, 16) at the steps t (B,)."""
        power = self.alphas[t][:, None, None, None]
        return power.sqrt() * SCALE_FACTOR * clean + (1.0 - power).sqrt() * noise

    def draw(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Returns noisy latents (B, 4, 16, 16), steps (B,), caption ids (B, 77), the noise and weights (B,)."""
        clean, t, ids, noise = self.clean(step)
        return self.noisy(clean, noise, t), t, ids, noise, self.weights(t)


def training_loss(model: Denoiser, x: Tensor, t: Tensor, ids: Tensor, noise: Tensor, weight: Tensor) -> Tensor:
    """Computes the weighted mean squared error of the predicted noise, with weights (B,)."""
    errors = F.mse_loss(model(x, t, ids).float(), noise, reduction="none").mean((1, 2, 3))
    return (weight * errors).mean()


def compiled(model: Denoiser) -> Callable[..., Tensor]:
    """Returns training_loss, compiled except for the transformers.

    In those, PyTorch 2.13 on a CPU returns no gradient.
    """
    for module in model.modules():
        if isinstance(module, SpatialTransformer):
            module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]
    torch._dynamo.config.cache_size_limit = 64  # one version for each size of a block
    return torch.compile(training_loss, dynamic=False)


def train(trainee: Trainee, batches: Batches, args: argparse.Namespace) -> None:
    """Trains a Denoiser from the trainee's step to the last one."""
    loss_of = training_loss if args.eager else compiled(trainee.module)
    progress = Progress(range(trainee.step, args.steps), trainee, args)
    for step in progress:
        x, t, ids, noise, weight = (part.to(args.device) for part in batches.draw(step))
        with autocast(args):
            loss = loss_of(trainee.module, x.contiguous(memory_format=torch.channels_last), t, ids, noise, weight)
        trainee.update(loss, rate_at(step, args, WARM_UP))
        progress.after_step(loss)


def main() -> None:
    """Runs the command line."""
    options = parser(__doc__.splitlines()[0], steps=8000, batch=16, rate=8e-4, decay=1500)
    options.add_argument("--zoomed", type=float, default=ZOOMED_SHARE, help="share of zoomed views at low noise")
    options.add_argument("--weight-limit", type=float, default=12.0, help="largest weight of a noise level")
    args = options.parse_args()
    device = prepare(args)
    captions = make_captions()
    data = torch.load(args.out / "latents.pt", weights_only=True)
    mix = Mix(TEMPLATE_SHARES, args.zoomed, args.weight_limit)
    batches = Batches(data, captions, args.batch, args.seed, mix)
    model = Denoiser(len(captions.used)).to(device, memory_format=torch.channels_last)
    trainee = Trainee(model, args.out / "unet.pt", decay=0.998)
    trainee.restore()
    train(trainee, batches, args)


if __name__ == "__main__":
    main()
