"""Plain DDIM sampling with classifier-free guidance, and a consistency model's, at any latent size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trial.schedule import STEPS
from trial.small_model import SmallModel

GUIDANCE = 3.0


def initial_noise(seeds: list[int], height: int, width: int) -> Tensor:
    """Unit noise (B, 4, height, width), one seed per picture; sizes in latent cells."""
    draws = [torch.randn(4, height, width, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws)


def denoised(x: Tensor, eps: Tensor, power: Tensor) -> Tensor:
    """The clean latent that the noise `eps` in x means, where the signal's power (alphas_cumprod) is `power`."""
    return (x - (1.0 - power).sqrt() * eps) / power.sqrt()


@torch.no_grad()
def ddim(model: SmallModel, prompts: list[str], noise: Tensor, steps: int = 25, guidance: float = GUIDANCE) -> Tensor:
    """Latents (B, 4, h, w) for the prompts, deterministic from the noise (DDIM with eta 0)."""
    batch = len(prompts)
    context = model.encode_prompts([*prompts, *[""] * batch])
    times = torch.linspace(999, 0, steps + 1).round().long()[:-1].tolist()
    x = noise.to(model.device)
    for now, after in zip(times, [*times[1:], -1], strict=True):
        t = torch.full((2 * batch,), now, device=x.device)
        eps, free = model.unet(torch.cat([x, x]), t, context).chunk(2)
        eps = free + guidance * (eps - free)
        power = model.alphas_cumprod[now]
        power_after = model.alphas_cumprod[after] if after >= 0 else torch.ones_like(power)
        x = power_after.sqrt() * denoised(x, eps, power) + (1.0 - power_after).sqrt() * eps
    return x


LCM_GRID = 50
"""Timesteps that latent consistency models know: every 20th, from 19 to 999."""
SIGMA_DATA, TIMESTEP_SCALE = 0.5, 10.0


def lcm_times(steps: int) -> list[int]:
    """`steps` of the known timesteps, evenly spread and falling from 999."""
    skip = STEPS // LCM_GRID
    chosen = torch.linspace(LCM_GRID, 0, steps + 1).round().long()[:-1]
    return (chosen * skip - 1).tolist()


def consistency(x: Tensor, eps: Tensor, t: Tensor, alphas: Tensor) -> Tensor:
    """The clean latent (B, 4, h, w) that a consistency model means by the noise it predicts in x at t (B,).

    Luo et al. (arXiv 2310.04378), equation 9: x itself at t = 0, all of the prediction soon after.
    """
    scaled, power = TIMESTEP_SCALE * t.float(), alphas[t]
    skip, out = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2), scaled / (scaled**2 + SIGMA_DATA**2).sqrt()
    skip, out, power = (part[:, None, None, None] for part in (skip, out, power))
    return skip * x + out * denoised(x, eps, power)


BETWEEN = 7_000_003
"""Added to the seed of a picture or stage for the noise between its steps."""


def fresh_noise(seeds: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """The noise between the steps of pictures with these seeds, each drawn alone so that a batch does not matter."""
    generators = [torch.Generator().manual_seed(BETWEEN + seed) for seed in seeds]

    def draw(x: Tensor) -> Tensor:
        return torch.stack([torch.randn(x.shape[1:], generator=generator) for generator in generators]).to(x)

    return draw


@torch.no_grad()
def lcm(
    model: SmallModel, prompts: list[str], noise: Tensor, fresh: Callable[[Tensor], Tensor], steps: int = 4
) -> Tensor:
    """Latents (B, 4, h, w) of a consistency model, whose guidance is built in; `fresh(x)` is noise between steps."""
    context, alphas, x = model.encode_prompts(prompts), model.alphas_cumprod, noise.to(model.device)
    times = lcm_times(steps)
    for now, after in zip(times, [*times[1:], None], strict=True):
        t = torch.full((len(prompts),), now, device=x.device)
        x = consistency(x, model.unet(x, t, context), t, alphas)
        if after is not None:
            x = alphas[after].sqrt() * x + (1.0 - alphas[after]).sqrt() * fresh(x)
    return x


@torch.no_grad()
def pictures(model: SmallModel, latents: Tensor) -> Tensor:
    """(B, H, W, 3) in 0..1 on the CPU."""
    decoded = torch.cat([model.decode(latent[None]) for latent in latents])
    return (decoded.permute(0, 2, 3, 1).cpu() + 1.0) / 2.0
