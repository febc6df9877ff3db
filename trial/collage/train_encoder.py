"""Trains the encoder, so that the UNet's training can begin: python -m trial.collage.train_encoder, after views.

The encoder learns with a decoder that works at an eighth and a quarter of the image's size. It costs a tenth of the
real decoder, which is trained later on the fixed latents. Noise of a fixed strength, relative to their unit variance,
keeps the latents smooth. A linear map that reads mean colours from the latents keeps them close to a thumbnail of the
image.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trial.autoencoder import Autoencoder, AutoencoderConfig, ResnetBlock
from trial.collage.views import VIEW
from trial.training import Progress, Trainee, learning_rate, parser, prepare

NOISE = 0.12
"""Noise on the latents in training, in their standard deviations."""
THUMBNAIL_WEIGHT, UNIT_WEIGHT = 2.0, 0.1
ZOOMED_SHARE = 0.3
CROP = 64
WIDE, MIDDLE = 192, 96


class SketchDecoder(nn.Module):
    """Decodes latents (B, 4, h, w) of unit variance to images (B, 3, 8 h, 8 w) at a low cost."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse = nn.Sequential(
            nn.Conv2d(4, WIDE, 3, padding=1),
            *[ResnetBlock(WIDE, WIDE) for _ in range(3)],
            nn.Conv2d(WIDE, 4 * MIDDLE, 1),
        )
        self.fine = nn.Sequential(*[ResnetBlock(MIDDLE, MIDDLE) for _ in range(2)], nn.Conv2d(MIDDLE, 48, 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        return F.pixel_shuffle(self.fine(F.pixel_shuffle(self.coarse(z), 2)), 4)


class Pair(nn.Module):
    """The encoder, the sketching decoder and the linear map from latents to mean colours."""

    def __init__(self) -> None:
        super().__init__()
        whole = Autoencoder(AutoencoderConfig())
        self.encoder, self.quant_conv = whole.encoder, whole.quant_conv
        self.decoder, self.thumbnail = SketchDecoder(), nn.Conv2d(4, 3, 1)

    def latents(self, x: Tensor) -> Tensor:
        """Returns the means (B, 4, h, w) of the latents of images in -1..1."""
        return self.quant_conv(self.encoder(x)).chunk(2, 1)[0]


def unit_loss(z: Tensor) -> Tensor:
    """Computes the weighted squared distance of each channel's mean and deviation from 0 and 1.

    The latents are (B, 4, h, w).
    """
    mean, spread = z.mean((0, 2, 3)), z.std((0, 2, 3))
    return UNIT_WEIGHT * (mean**2 + (spread - 1.0) ** 2).mean()


def loss_of(pair: Pair, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the training loss and the squared error of the images.

    The loss also moves every latent channel towards mean 0 and variance 1.
    """
    z = pair.latents(x).float()
    noisy = z + NOISE * z.detach().std((0, 2, 3))[:, None, None] * noise
    output = pair.decoder(noisy).float()
    error = F.mse_loss(output, x)
    thumbnail = F.mse_loss(pair.thumbnail(z).float(), F.avg_pool2d(x, 8))
    slopes = sum(F.l1_loss(output.diff(dim=d), x.diff(dim=d)) for d in (2, 3))
    return 10.0 * error + 0.2 * slopes + THUMBNAIL_WEIGHT * thumbnail + unit_loss(z), error


def batches(folder: Path, args: argparse.Namespace, start: int) -> Iterator[Tensor]:
    """Yields the images (B, 3, 64, 64) in -1..1 of each step. They depend only on the seed and the step."""
    sets = [np.load(folder / f"{kind}.npy", mmap_mode="r") for kind in ("whole", "zoomed")]
    for step in range(start, args.steps):
        rng = np.random.default_rng((args.seed, step))
        zoomed = rng.random(args.batch) < ZOOMED_SHARE
        corners = rng.integers(0, (VIEW - CROP) // 8 + 1, (args.batch, 2)) * 8
        chosen = [
            sets[int(z)][rng.integers(len(sets[int(z)])), y : y + CROP, x : x + CROP]
            for z, (y, x) in zip(zoomed, corners)
        ]
        yield torch.from_numpy(np.stack(chosen)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def main() -> None:
    """Runs the command line."""
    options = parser(__doc__.splitlines()[0], steps=1500, batch=16, rate=1e-3)
    options.add_argument("--views", type=Path, help="folder of the rendered views, if not --out")
    args = options.parse_args()
    device = prepare(args)
    pair = Pair().to(device, memory_format=torch.channels_last)
    trainee = Trainee(pair, args.out / "encoder.pt", decay=0.995)
    trainee.restore()
    if not args.eager:
        for module in pair.modules():
            if isinstance(module, ResnetBlock):
                module.compile(dynamic=False)
    progress = Progress(batches(args.views or args.out, args, trainee.step), trainee, args)
    for x in progress:
        x = x.to(device, memory_format=torch.channels_last)
        noise = torch.randn(len(x), 4, x.shape[2] // 8, x.shape[3] // 8, device=device)
        with torch.autocast(device.type, torch.bfloat16):
            loss, error = loss_of(pair, x, noise)
        trainee.update(loss, learning_rate(trainee.step, args.steps, args.rate))
        progress.after_step(loss, error)


if __name__ == "__main__":
    main()
