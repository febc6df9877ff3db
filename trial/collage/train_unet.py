"""Trains the UNet and the text encoder on encoded collages: python -m trial.collage.train_unet, after latents.

Zoomed views have the captions of whole views, but appear only at moderate noise levels. The subject of an image is
determined at high noise levels, so samples of native size show one whole subject. A tile of a larger image is sampled
at moderate noise levels, for which the model has learned zoomed views.

The training starts from the bundled model, or continues from its state in --out. The learning rate is constant until
the last --decay steps, so you can extend a run: with more --steps it continues from its state.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trial.autoencoder import SCALE_FACTOR
from trial.collage.model import TEMPLATE_SHARES, TEXT, UNET, Captions, make_captions
from trial.schedule import STEPS, alphas_cumprod
from trial.small_model import CHECKPOINT, SmallModel, load
from trial.text import TextEncoder
from trial.training import Trainee, parser, train
from trial.unet import UNet

EMPTY_SHARE = 0.1
ZOOMED_SHARE, ZOOMED_NONE_ABOVE, ZOOMED_FULL_BELOW = 0.15, 750, 450
"""Share of zoomed views below a timestep, and the timestep above which there are none."""
WEIGHT_LIMIT = 12.0
"""Largest weight of a timestep in the loss."""
UNKNOWN = 0.2
"""Words shorter than this share of the median length were never trained."""
WORDS = "text_model.embeddings.token_embedding.weight"


class Denoiser(nn.Module):
    """UNet and text encoder together: predicts the noise from x (B, 4, h, w), t (B,) and ids (B, 77)."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.unet, self.text = UNet(UNET), TextEncoder(replace(TEXT, vocab_size=words))
        for name, parameter in self.unet.named_parameters():
            if name.endswith(("out_layers.3.weight", "proj_out.weight", "out.2.weight")):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        return self.unet(x, t, self.text(ids))


def trained_denoiser(model: SmallModel, captions: Captions) -> Denoiser:
    """Returns a Denoiser for the words of the captions with the weights of a finished model."""
    denoiser = Denoiser(len(captions.used))
    denoiser.unet.load_state_dict(model.unet.state_dict())
    text = model.text.state_dict()
    denoiser.text.load_state_dict({**text, WORDS: lengthened(text[WORDS][captions.used])})
    return denoiser


def lengthened(table: Tensor) -> Tensor:
    """Scales the embeddings (rows) of unknown words to the usual length of known words.

    Embeddings of untrained words are about twenty times shorter (`packing.STD`). The text encoder could hardly
    distinguish them.
    """
    lengths = table.norm(dim=1, keepdim=True)
    usual = lengths.median()
    return torch.where(lengths < UNKNOWN * usual, table * usual / lengths, table)


class Batches:
    """Draws random training batches. A step's draw depends only on the seed and the step."""

    def __init__(self, data: dict[str, Tensor], captions: Captions, batch: int, seed: int) -> None:
        self.data, self.captions, self.batch, self.seed = data, captions, batch, seed
        self.shares = torch.tensor(TEMPLATE_SHARES)
        self.alphas = alphas_cumprod().float()

    def weights(self, t: Tensor) -> Tensor:
        """Returns the loss weights (B,) of the steps t (B,): the inverse signal power up to a limit.

        They convert the error of the noise to that of v (Salimans and Ho, arXiv 2202.00512). Without them, the steps at
        which only the text determines the image would have almost no weight. The model would then learn to derive
        colours from the noise.
        """
        return (1.0 / self.alphas[t]).clamp(max=WEIGHT_LIMIT)

    def clean(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the inputs of `noisy`: unscaled latents (B, 4, 16, 16), steps (B,), caption ids (B, 77) and noise."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        rand = partial(torch.rand, self.batch, generator=generator)
        t = ((torch.arange(self.batch) + rand()) / self.batch * STEPS).long().clamp(max=STEPS - 1)
        fade = (ZOOMED_NONE_ABOVE - t) / (ZOOMED_NONE_ABOVE - ZOOMED_FULL_BELOW)
        zoomed = rand() < ZOOMED_SHARE * fade.clamp(0.0, 1.0)
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


def training_loss(model: Denoiser, batches: Batches, step: int, device: str) -> Tensor:
    """Computes the weighted mean squared error of the predicted noise."""
    clean, t, ids, noise = batches.clean(step)
    inputs = (part.to(device) for part in (batches.noisy(clean, noise, t), t, ids))
    errors = F.mse_loss(model(*inputs).float(), noise.to(device), reduction="none").mean((1, 2, 3))
    return (batches.weights(t).to(device) * errors).mean()


def main() -> None:
    """Runs the command line."""
    options = parser(__doc__.splitlines()[0], steps=8000, rate=8e-4, decay=1500)
    options.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="the model to start from")
    options.add_argument("--from-scratch", action="store_true", help="start from random weights")
    args = options.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    captions = make_captions()
    batches = Batches(torch.load(args.out / "latents.pt", weights_only=True), captions, args.batch, args.seed)
    model = Denoiser(len(captions.used)) if args.from_scratch else trained_denoiser(load(args.checkpoint), captions)
    model = model.to(args.device, memory_format=torch.channels_last)
    trainee = Trainee(model, args.out / "unet.pt", decay=0.998)
    train(trainee, lambda step: training_loss(model, batches, step, args.device), args)


if __name__ == "__main__":
    main()
