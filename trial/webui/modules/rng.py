"""Stand-in: draws noise for each image separately, so that an image does not depend on its batch."""

from typing import Any

import torch
from modules import devices, shared
from torch import Tensor


def slerp(val: float, low: Tensor, high: Tensor) -> Tensor:
    """Interpolates between two noises on the sphere, row by row."""
    a, b = low / low.norm(dim=1, keepdim=True), high / high.norm(dim=1, keepdim=True)
    dot = (a * b).sum(1)
    if dot.mean() > 0.9995:
        return low * val + high * (1 - val)
    angle = torch.acos(dot)
    weights = (torch.sin((1.0 - val) * angle) / torch.sin(angle)), (torch.sin(val * angle) / torch.sin(angle))
    return weights[0].unsqueeze(1) * low + weights[1].unsqueeze(1) * high


class ImageRNG:
    """One generator per image. Only the first noise is mixed with that of the subseeds."""

    def __init__(
        self,
        shape: Any,
        seeds: list[int],
        subseeds: list[int] | None = None,
        subseed_strength: float = 0.0,
        seed_resize_from_h: int = 0,
        seed_resize_from_w: int = 0,
    ):
        if seed_resize_from_h > 0 and seed_resize_from_w > 0:
            raise NotImplementedError("the stand-in has no resized seeds")
        self.shape = tuple(map(int, shape))
        self.seeds = seeds
        self.subseeds = subseeds
        self.subseed_strength = subseed_strength
        self.generators = [torch.Generator(devices.cpu).manual_seed(int(seed)) for seed in seeds]
        self.is_first = True

    def first(self) -> Tensor:
        """Returns the noise (B, C, H, W) at the start of sampling."""
        noise = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        if self.subseeds is not None and self.subseed_strength != 0:
            other = [devices.randn_local(seed, self.shape) for seed in self.subseeds]
            noise = [slerp(self.subseed_strength, a, b) for a, b in zip(noise, other)]
        return torch.stack(noise).to(shared.device)

    def next(self) -> Tensor:
        """Returns the next noise (B, C, H, W) of every image."""
        if self.is_first:
            self.is_first = False
            return self.first()
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators]).to(shared.device)
