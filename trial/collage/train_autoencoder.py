"""Continues the training of encoder and decoder together: python -m trial.collage.train_autoencoder.

Run it after make_latents --checkpoint. Before, the encoder learned with a sketch of a decoder, and the decoder learned
from fixed latents. Here each adapts to the other. The loss keeps the latents near their earlier values, so that the
UNet has little to relearn, and near unit variance with added noise of a fixed strength. `make_latents --together` then
fixes them again.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from trial.autoencoder import Autoencoder
from trial.collage.model import AUTOENCODER
from trial.collage.train_decoder import batches
from trial.collage.train_encoder import unit_loss
from trial.make_latents import SCALE_FACTOR
from trial.train_autoencoder import compile_blocks, reconstruction_loss, starting_model
from trial.training import Progress, Trainee, parser, prepare, rate_at

TOGETHER = "autoencoder-together.pt"
"""The state file of this training."""


def loss_of(model: Autoencoder, before: Autoencoder, x: Tensor, noise: Tensor, tie: float) -> tuple[Tensor, Tensor]:
    """Computes training loss and squared error of images x (B, 3, H, W).

    The noise (B, 4, H / 8, W / 8) is added to their latents. `tie` is the weight of the squared distance of the scaled
    latents from those of `before`.
    """
    z = model.moments(x)[0].float() * SCALE_FACTOR
    output = model.decode((z + noise) / SCALE_FACTOR).float()
    with torch.no_grad():
        place = before.moments(x)[0].float() * SCALE_FACTOR
    held = unit_loss(z) + tie * F.mse_loss(z, place)
    return reconstruction_loss(output, x) + held, F.mse_loss(output.detach(), x)


def main() -> None:
    """Runs the command line."""
    options = parser(__doc__.splitlines()[0], steps=6000, batch=8, rate=6e-4, decay=2500)
    options.add_argument("--noise", type=float, default=0.08, help="noise on the latents in their standard deviations")
    options.add_argument("--tie", type=float, default=0.3, help="weight of the latents' distance from where they lay")
    args = options.parse_args()
    prepare(args)
    model = starting_model(args.out / "autoencoder-start.pt", AUTOENCODER).to(memory_format=torch.channels_last)
    before = copy.deepcopy(model).requires_grad_(False)
    trainee = Trainee(model.requires_grad_(True), args.out / TOGETHER, decay=0.995)
    trainee.restore()
    if not args.eager:
        compile_blocks(model)
    progress = Progress(batches(args.out, args, trainee.step), trainee, args)
    for x in progress:
        x = x.to(memory_format=torch.channels_last)
        noise = args.noise * torch.randn(len(x), AUTOENCODER.z_channels, x.shape[2] // 8, x.shape[3] // 8)
        with torch.autocast("cpu", torch.bfloat16):
            loss, error = loss_of(model, before, x, noise, args.tie)
        trainee.update(loss, rate_at(trainee.step, args))
        progress.after_step(loss, error)


if __name__ == "__main__":
    main()
