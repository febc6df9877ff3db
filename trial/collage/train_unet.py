"""Trains the UNet and the text encoder on encoded collages: python -m trial.collage.train_unet.

Zoomed views appear only at moderate noise; trial.train_unet explains why. The learning rate is constant until the last
--decay steps, so you can extend a run: with more --steps it continues from its state.
"""

from __future__ import annotations

import torch

from trial.collage.model import TEMPLATE_SHARES, TEXT, UNET, ZOOMED_SHARE, make_captions
from trial.train_unet import Batches, Denoiser, Mix, train
from trial.training import Trainee, parser, prepare, rate_at

WARM_UP = 200


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
    model = Denoiser(len(captions.used), UNET, TEXT).to(device, memory_format=torch.channels_last)
    trainee = Trainee(model, args.out / "unet.pt", decay=0.998)
    trainee.restore()
    train(trainee, batches, args, lambda step: rate_at(step, args, WARM_UP), device)


if __name__ == "__main__":
    main()
