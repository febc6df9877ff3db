"""Trains the UNet and the text encoder on encoded collages: python -m trial.collage.train_unet.

Zoomed views appear at moderate noise only, as trial.train_unet tells.
"""

from __future__ import annotations

import torch
from tqdm import tqdm

from trial.collage.model import TEMPLATE_SHARES, TEXT, UNET, make_captions
from trial.train_unet import Batches, Denoiser, compiled, training_loss
from trial.training import Trainee, learning_rate, parser, prepare


def main() -> None:
    """Command line."""
    args = parser(__doc__.splitlines()[0], steps=8000, batch=16, rate=1e-3).parse_args()
    device = prepare(args)
    captions = make_captions()
    data = torch.load(args.out / "latents.pt", weights_only=True)
    batches = Batches(data, captions, args.batch, args.seed, TEMPLATE_SHARES)
    model = Denoiser(len(captions.used), UNET, TEXT).to(device, memory_format=torch.channels_last)
    trainee = Trainee(model, args.out / "unet.pt", decay=0.998)
    trainee.restore()
    loss_of = training_loss if args.eager else compiled(model)
    progress = tqdm(range(trainee.step, args.steps), initial=trainee.step, total=args.steps, mininterval=10)
    recent = 1.0
    for step in progress:
        x, t, ids, noise, weight = (part.to(device) for part in batches.draw(step))
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(model, x.contiguous(memory_format=torch.channels_last), t, ids, noise, weight)
        trainee.update(loss, learning_rate(step, args.steps, args.rate))
        recent += 0.02 * (loss.item() - recent)
        if trainee.step % 20 == 0:
            progress.set_postfix(loss=f"{recent:.4f}")
        trainee.save_when_due(args)


if __name__ == "__main__":
    main()
