"""Trains the decoder on random windows of random scenes: python -m trial.train_autoencoder, after make_latents.

The encoder is designed and not trained, so this can run at the same time as the training of the UNet. The crops grow
from 64 px, where a step is cheap, to whole views of 128 px, because the statistics of the group norms depend on the
size of the image.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trial.autoencoder import Autoencoder, AutoencoderConfig, ResnetBlock
from trial.make_latents import SCALE_FACTOR
from trial.scenes import all_labels, random_box, random_scene, render
from trial.training import Progress, Trainee, learning_rate, parser, prepare

VIEW = 128
# until this share of the steps: crop in px, share of the batch
STAGES = ((0.85, 64, 1.0), (1.0, VIEW, 0.25))
ZOOMS = (1.0, 1.0, 1.0, 2.0, 3.0, 4.0, 8.0)
LATENT_NOISE = 0.03  # relative to a unit latent, because the UNet's latents are not exact either


def crops(rng: np.random.Generator, count: int, size: int) -> Tensor:
    """Renders crops (count, 3, size, size) in -1..1 from views of 128 px at several zooms."""
    labels = all_labels()
    pictures = []
    for _ in range(count):
        scene = random_scene(rng, labels[rng.integers(len(labels))])
        zoom = float(rng.choice(ZOOMS)) * VIEW / size
        pictures.append(render(scene, size, size, random_box(rng, zoom)))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) * 2.0 - 1.0


def _slopes(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Computes the squared error of the pixels and the absolute error of their slopes, which measures sharpness."""
    slopes = sum(F.l1_loss(a, b) for a, b in zip(_slopes(output), _slopes(target), strict=True))
    return 10.0 * F.mse_loss(output, target) + 0.25 * slopes


def training_loss(model: Autoencoder, x: Tensor, z: Tensor) -> Tensor:
    """Computes the error of the decoder's image from the latents z with respect to x."""
    return reconstruction_loss(model.decode(z).float(), x)


def batches(args: argparse.Namespace, start: int) -> Iterator[Tensor]:
    """Yields the images of each step.

    They depend only on the seed and the step, so a resumed run continues unchanged.
    """
    for step in range(start, args.steps):
        rng = np.random.default_rng((args.seed, step))
        size, share = next((size, share) for until, size, share in STAGES if step < until * args.steps)
        yield crops(rng, max(int(args.batch * share), 1), size)


def starting_model(path: Path, config: AutoencoderConfig) -> Autoencoder:
    """Returns the model with which the decoder's training starts."""
    model = Autoencoder(config)
    model.load_state_dict(torch.load(path, weights_only=True))
    return decoder_only(model)


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


def main() -> None:
    """Runs the command line."""
    args = parser(__doc__.splitlines()[0], steps=3000, batch=8, rate=1e-3).parse_args()
    device = prepare(args)
    model = starting_model(args.out / "autoencoder-start.pt", AutoencoderConfig())
    model = model.to(device, memory_format=torch.channels_last)
    trainee = Trainee(model, args.out / "autoencoder.pt", decay=0.995)
    trainee.restore()
    if not args.eager:
        compile_blocks(model)
    progress = Progress(batches(args, trainee.step), trainee, args)
    for x in progress:
        x = x.to(device, memory_format=torch.channels_last)
        with torch.no_grad():
            z = model.moments(x)[0]
            z = z + LATENT_NOISE / SCALE_FACTOR * torch.randn_like(z)
        with torch.autocast(device.type, torch.bfloat16):
            loss = training_loss(model, x, z)
        trainee.update(loss, learning_rate(trainee.step, args.steps, args.rate))
        progress.after_step(loss)


if __name__ == "__main__":
    main()
