"""Plain DDIM sampling with classifier-free guidance, at any latent size."""

from __future__ import annotations

import torch
from torch import Tensor

from trial.small_model import SmallModel

GUIDANCE = 3.0


def initial_noise(seeds: list[int], height: int, width: int) -> Tensor:
    """Unit noise (B, 4, height, width), one seed per picture; sizes in latent cells."""
    draws = [torch.randn(4, height, width, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws)


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
        clean = (x - (1.0 - power).sqrt() * eps) / power.sqrt()
        x = power_after.sqrt() * clean + (1.0 - power_after).sqrt() * eps
    return x


@torch.no_grad()
def pictures(model: SmallModel, latents: Tensor) -> Tensor:
    """(B, H, W, 3) in 0..1 on the CPU."""
    decoded = torch.cat([model.decode(latent[None]) for latent in latents])
    return (decoded.permute(0, 2, 3, 1).cpu() + 1.0) / 2.0
