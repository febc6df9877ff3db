"""Stand-in: draws noise for each image separately, so that an image does not depend on the others in its batch."""

from typing import Any

import torch
from modules import devices, shared
from torch import Tensor


class ImageRNG:
    """Draws noise with one random generator per image."""

    def __init__(
        self,
        shape: Any,
        seeds: list[int],
        subseeds: list[int] | None = None,
        subseed_strength: float = 0.0,
        seed_resize_from_h: int = 0,
        seed_resize_from_w: int = 0,
    ):
        if subseed_strength or seed_resize_from_h or seed_resize_from_w:
            raise NotImplementedError("the stand-in has no variation seeds and no resized seeds")
        self.shape = tuple(map(int, shape))
        self.generators = [torch.Generator(devices.cpu).manual_seed(int(seed)) for seed in seeds]

    def next(self) -> Tensor:
        """Draws new noise (B, C, H, W) for all images of the batch."""
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators]).to(shared.device)
