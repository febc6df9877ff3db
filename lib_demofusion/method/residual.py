"""The skip residual: ties a sampler's x to the noised anchor at the start of every sampler step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from lib_demofusion.method.timesteps import Timestep, snr_timestep


class NoiseSpace(Protocol):
    """How a sampler's x is made of signal and noise. `level` is what the sampler hands to its model."""

    def read(self, level: Tensor) -> tuple[Tensor, float]:
        """Returns a scalar noise level on the CPU, and the model's timestep (0 to 1000) there.

        The two come back from the device at once: it has work to do until then, and the processor waits.
        """
        ...

    def signal_scale(self, level: Tensor) -> Tensor:
        """Returns the factor of the clean signal in x."""
        ...

    def noise_scale(self, level: Tensor) -> Tensor:
        """Returns the factor of unit noise in x."""
        ...


class VarianceExploding:
    """x = signal + sigma * noise, the space of the k-diffusion samplers, whose level is sigma."""

    def __init__(self, sigma_to_t: Callable[[Tensor], Tensor]):
        self._sigma_to_t = sigma_to_t

    def read(self, level: Tensor) -> tuple[Tensor, float]:
        timestep = self._sigma_to_t(level.reshape(1)).reshape(()).to(level)
        level, timestep = torch.stack([level.detach(), timestep]).cpu()
        return level, float(timestep)

    def signal_scale(self, level: Tensor) -> Tensor:
        return torch.ones_like(level)

    def noise_scale(self, level: Tensor) -> Tensor:
        return level


class VariancePreserving:
    """x = sqrt(a_t) signal + sqrt(1 - a_t) noise, the space of DDIM, PLMS and UniPC, whose level is the timestep t.

    UniPC asks for fractional t; log a_t is interpolated linearly, as its own noise schedule does.
    """

    def __init__(self, alphas_cumprod: Tensor):
        # on the CPU, for Apple's GPUs have no double precision
        self._log_alphas = alphas_cumprod.detach().cpu().double().log()

    def read(self, level: Tensor) -> tuple[Tensor, float]:
        level = level.detach().cpu()
        return level, float(level)

    def signal_scale(self, level: Tensor) -> Tensor:
        return _beside(level, self._alpha(level).sqrt())

    def noise_scale(self, level: Tensor) -> Tensor:
        return _beside(level, (1 - self._alpha(level)).sqrt())

    def _alpha(self, level: Tensor) -> Tensor:
        t = level.detach().cpu().double().clamp(0, len(self._log_alphas) - 1)
        below = t.floor().long()
        above = (below + 1).clamp_max(len(self._log_alphas) - 1)
        return torch.lerp(self._log_alphas[below], self._log_alphas[above], t - below).exp()


class Flow:
    """x = (1 - sigma) signal + sigma noise, the space of flow-matching models, whose level is sigma (1 to 0).

    Their samplers step along the velocity (x - denoised) / sigma. `timestep` decides which weights a level gets.
    """

    def __init__(self, timestep: Timestep = snr_timestep):
        self._timestep = timestep

    def read(self, level: Tensor) -> tuple[Tensor, float]:
        level = level.detach().cpu()
        return level, self._timestep(float(level))

    def signal_scale(self, level: Tensor) -> Tensor:
        return 1 - level

    def noise_scale(self, level: Tensor) -> Tensor:
        return level


def _beside(level: Tensor, value: Tensor) -> Tensor:
    """Returns `value` on the device of `level` and in its type, or in single precision where that is a whole number."""
    return value.to(level.dtype if level.is_floating_point() else torch.float32).to(level.device)


def noised(anchor: Tensor, noise: Tensor, level: Tensor, space: NoiseSpace) -> Tensor:
    """Returns the anchor (B, C, H, W) with the noise of a scalar level, in the sampler's space.

    The level may stay on the CPU: torch hands a scalar to the device's kernel as a number.
    """
    level = level.to(anchor.dtype)
    return anchor * space.signal_scale(level) + noise * space.noise_scale(level)


def scales_at(space: NoiseSpace, level: Tensor) -> tuple[float, float]:
    """Returns the factors of the clean signal and of unit noise in x at a scalar noise level, as numbers."""
    return float(space.signal_scale(level)), float(space.noise_scale(level))


def blend_noised_(x: Tensor, anchor: Tensor, noise: Tensor, scales: tuple[float, float], c1: float) -> None:
    """Replaces x by (1 - c1) x + c1 noised(anchor) in place: the paper's form, for samplers that add no noise.

    `scales` are those of `scales_at`. No other latent is made on the way: fresh memory costs more than the sum.
    """
    signal_scale, noise_scale = scales
    x.mul_(1 - c1)
    x.add_(anchor.to(x), alpha=c1 * signal_scale)
    x.add_(noise.to(x), alpha=c1 * noise_scale)


def blend_signal_(x: Tensor, anchor: Tensor, denoised: Tensor, c1: float, signal_scale: Tensor) -> None:
    """Moves x by c1 (anchor - denoised) in place, `denoised` being the prediction of the step before.

    For samplers that redraw noise: mixing their x with a fixed anchor noise would lower the noise level below what the
    model is told (to 0.89 of sigma under Euler a), this leaves the noise alone.
    """
    x.add_((anchor - denoised).to(x) * signal_scale.to(x.dtype), alpha=c1)
