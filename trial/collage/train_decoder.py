"""Trains the decoder on the fixed latents: python -m trial.collage.train_decoder, after make_latents.

With squared error alone the decoder outputs the mean of all textures that fit a latent, which is a blur. After --plain
steps the loss has three more terms, so that the decoder outputs texture: a discriminator of small patches (Isola et
al., arXiv 1611.07004, with the hinge loss), features of the detector's first layers, and the local strength of fine
detail.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trial.autoencoder import SCALE_FACTOR, Autoencoder, ResnetBlock
from trial.collage.detector import trained
from trial.collage.model import AUTOENCODER
from trial.collage.views import VIEW
from trial.training import Progress, Trainee, autocast, parser, prepare, rate_at

CROP = 64
LATENT_NOISE = 0.05
"""Noise on the latents, in their standard deviations, because the UNet's latents are not exact either."""
ZOOMED_SHARE = 0.35
FEATURE_WEIGHT, ADVERSARIAL_WEIGHT, TEXTURE_WEIGHT = 0.1, 0.04, 0.1
BANDS, PATCH = 2, 16
"""Number of octaves of detail that are compared, from the finest on, and the side of a patch in their pixels."""
LARGE_AFTER, LARGE_SHARE = 0.85, 0.25
"""After this share of the steps, whole views are decoded in batches of a quarter of the size."""


class Discriminator(nn.Module):
    """Maps images (B, 3, H, W) to logits (B, 1, h, w) that a patch of about 34 px is true."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width)
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.GroupNorm(8, after), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@dataclass
class Judges:
    """The other terms of the loss: fixed features, and the discriminator with its optimiser."""

    features: nn.Module
    discriminator: Discriminator
    optimiser: torch.optim.Optimizer


def batches(folder: Path, args: argparse.Namespace, start: int) -> Iterator[Tensor]:
    """Yields the images (B, 3, h, w) in -1..1 of each step. They depend only on the seed and the step."""
    sets = [np.load(folder / f"{kind}.npy", mmap_mode="r") for kind in ("whole", "zoomed")]
    for step in range(start, args.steps):
        rng = np.random.default_rng((args.seed, step))
        large = step >= LARGE_AFTER * args.steps
        size, count = (VIEW, max(int(args.batch * LARGE_SHARE), 1)) if large else (CROP, args.batch)
        chosen = []
        for zoomed in rng.random(count) < ZOOMED_SHARE:
            views = sets[int(zoomed)]
            y, x = rng.integers(0, (VIEW - size) // 8 + 1, 2) * 8
            chosen.append(views[rng.integers(len(views)), y : y + size, x : x + size])
        yield torch.from_numpy(np.stack(chosen)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def _slopes(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Computes the squared error of the pixels and the absolute error of their slopes, which measures sharpness."""
    slopes = sum(F.l1_loss(a, b) for a, b in zip(_slopes(output), _slopes(target), strict=True))
    return 10.0 * F.mse_loss(output, target) + 0.25 * slopes


def decoder_only(model: Autoencoder) -> Autoencoder:
    """Freezes everything except the decoder."""
    model.requires_grad_(True)
    model.encoder.requires_grad_(False)
    model.quant_conv.requires_grad_(False)
    return model


def compile_blocks(model: Autoencoder) -> None:
    """Compiles the blocks one by one. As a whole, PyTorch 2.13 on a CPU loses the gradient at the last upsampling."""
    torch._dynamo.config.cache_size_limit = 64  # one version for each size of feature map
    for module in model.decoder.modules():
        if isinstance(module, ResnetBlock):
            module.compile(dynamic=False)


def feature_loss(features: nn.Module, output: Tensor, target: Tensor) -> Tensor:
    """Computes the mean absolute difference of the features of every second layer, relative to the true features."""
    total = output.new_zeros(())
    a, b = output, target
    for index, layer in enumerate(features):  # type: ignore[arg-type]
        a, b = layer(a), layer(b)
        if index % 2 == 1:
            total = total + F.l1_loss(a, b) / b.abs().mean().clamp(min=1e-3)
    return total


def texture_loss(output: Tensor, target: Tensor) -> Tensor:
    """Computes the mean absolute logarithm of the ratio of local standard deviations.

    It compares the finest octaves of images (B, 3, H, W).
    """
    total = output.new_zeros(())
    for _ in range(BANDS):
        strengths, coarse = [], []
        for x in (output, target):
            coarse.append(F.avg_pool2d(x, 2))
            detail = x - F.interpolate(coarse[-1], scale_factor=2.0, mode="bilinear")
            strengths.append(F.avg_pool2d(detail.square().mean(1, keepdim=True), PATCH, PATCH // 2).add(1e-4).log() / 2)
        total = total + F.l1_loss(*strengths)
        output, target = coarse
    return total / BANDS


def judged_loss(judges: Judges, output: Tensor, target: Tensor) -> Tensor:
    """Computes the loss by features, texture and discriminator, and trains the discriminator by one step."""
    discriminator = judges.discriminator
    true, made = discriminator(target), discriminator(output.detach())
    hinge = F.relu(1.0 - true).mean() + F.relu(1.0 + made).mean()
    judges.optimiser.zero_grad(set_to_none=True)
    hinge.backward()
    judges.optimiser.step()
    discriminator.requires_grad_(False)
    fooled = -discriminator(output).mean()
    discriminator.requires_grad_(True)
    looks = FEATURE_WEIGHT * feature_loss(judges.features, output, target) + TEXTURE_WEIGHT * texture_loss(
        output, target
    )
    return looks + ADVERSARIAL_WEIGHT * fooled


def make_judges() -> Judges:
    """Returns the detector's first layers and a new discriminator."""
    discriminator = Discriminator().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(discriminator.parameters(), lr=4e-4, betas=(0.5, 0.9))
    return Judges(trained().features[:4].to(memory_format=torch.channels_last), discriminator, optimiser)


def main() -> None:
    """Runs the command line."""
    options = parser(__doc__.splitlines()[0], steps=3000, batch=8, rate=8e-4, decay=600)
    options.add_argument("--plain", type=int, default=1200, help="steps before features and discriminator count")
    args = options.parse_args()
    prepare(args)
    model = decoder_only(Autoencoder(AUTOENCODER)).to(memory_format=torch.channels_last)
    trainee = Trainee(model, args.out / "autoencoder.pt", decay=0.995)
    if not trainee.restore():
        raise SystemExit(f"{trainee.path} is missing. Run `python -m trial.collage.make_latents` first.")
    if not args.eager:
        compile_blocks(model)
    judges: Judges | None = None
    progress = Progress(batches(args.out, args, trainee.step), trainee, args)
    for x in progress:
        x = x.to(memory_format=torch.channels_last)
        with autocast(args):
            with torch.no_grad():
                z = model.moments(x)[0]
                z = z + LATENT_NOISE / SCALE_FACTOR * torch.randn_like(z)
            output = model.decode(z).float()
            loss = reconstruction_loss(output, x)
            if trainee.step >= args.plain:
                judges = judges or make_judges()
                loss = loss + judged_loss(judges, output, x)
        trainee.update(loss, rate_at(trainee.step, args))
        progress.after_step(loss, F.mse_loss(output.detach(), x))


if __name__ == "__main__":
    main()
