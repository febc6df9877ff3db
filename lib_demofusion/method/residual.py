"""The skip residual: blends a sampler's x with the anchor at the start of every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from lib_demofusion.method.schedule import Timestep, snr_timestep


class NoiseSpace(Protocol):
    """Describes how a sampler's x is composed: x = signal_scale * signal + noise_scale * noise.

    The noise has a standard deviation of 1. `level` is the noise level that the sampler passes to its model, such as
    sigma or a timestep.
    """

    def read(self, level: Tensor) -> tuple[Tensor, float]:
        """Returns a copy of a scalar noise level on the CPU, and the timestep (0 to 1000) at this level.

        The cosine weights depend on this timestep. An implementation should copy both numbers from the device in one
        transfer, because each transfer waits for the device's queue.
        """
        ...

    def signal_scale(self, level: Tensor) -> Tensor:
        """Returns the factor of the clean signal in x at a noise level."""
        ...

    def noise_scale(self, level: Tensor) -> Tensor:
        """Returns the factor of the noise in x at a noise level."""
        ...


class VarianceExploding:
    """x = signal + sigma * noise, as in the k-diffusion samplers. Their noise level is sigma."""

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
    """x = sqrt(a_t) signal + sqrt(1 - a_t) noise, as in DDIM, PLMS and UniPC. Their noise level is the timestep t.

    a_t is `alphas_cumprod` at timestep t. UniPC also uses fractional timesteps. At these, log a_t is interpolated
    linearly, as in UniPC's own noise schedule.
    """

    def __init__(self, alphas_cumprod: Tensor):
        # on the CPU, because Apple's GPUs have no double precision
        self._log_alphas = alphas_cumprod.detach().cpu().double().log()

    def read(self, level: Tensor) -> tuple[Tensor, float]:
        level = level.detach().cpu()
        return level, float(level)

    def signal_scale(self, level: Tensor) -> Tensor:
        return _as_level(level, self._alpha(level).sqrt())

    def noise_scale(self, level: Tensor) -> Tensor:
        return _as_level(level, (1 - self._alpha(level)).sqrt())

    def _alpha(self, level: Tensor) -> Tensor:
        t = level.detach().cpu().double().clamp(0, len(self._log_alphas) - 1)
        below = t.floor().long()
        above = (below + 1).clamp_max(len(self._log_alphas) - 1)
        return torch.lerp(self._log_alphas[below], self._log_alphas[above], t - below).exp()


class Flow:
    """x = (1 - sigma) signal + sigma noise, as in flow-matching models. Their noise level is sigma (1 to 0).

    `timestep` converts a noise level to the timestep that determines the cosine weights.
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


def _as_level(level: Tensor, value: Tensor) -> Tensor:
    """Converts `value` to the device and dtype of `level`, or to float32 if `level` has an integer dtype."""
    return value.to(level.dtype if level.is_floating_point() else torch.float32).to(level.device)


def noised(anchor: Tensor, noise: Tensor, level: Tensor, space: NoiseSpace) -> Tensor:
    """Returns the sampler's x at a scalar noise level, with the anchor (B, C, H, W) as the signal.

    `level` can be on the CPU even if the anchor is not, because torch passes a scalar to the device as a number.
    """
    level = level.to(anchor.dtype)
    return anchor * space.signal_scale(level) + noise * space.noise_scale(level)


def scales_at(space: NoiseSpace, level: Tensor) -> tuple[float, float]:
    """Returns `signal_scale` and `noise_scale` of a space at a scalar noise level, as Python numbers."""
    return float(space.signal_scale(level)), float(space.noise_scale(level))


def blend_noised_(x: Tensor, anchor: Tensor, noise: Tensor, scales: tuple[float, float], c1: float) -> None:
    """Replaces x with (1 - c1) x + c1 noised(anchor) in place, as in the paper.

    Use this function for samplers that add no noise. `scales` is the result of `scales_at`. All operations are in
    place, because allocating a latent would take longer.
    """
    signal_scale, noise_scale = scales
    x.mul_(1 - c1)
    x.add_(anchor.to(x), alpha=c1 * signal_scale)
    x.add_(noise.to(x), alpha=c1 * noise_scale)


def blend_signal_(x: Tensor, anchor: Tensor, denoised: Tensor, c1: float, signal_scale: Tensor) -> None:
    """Adds c1 * signal_scale * (anchor - denoised) to x in place.

    `denoised` is the prediction of the clean latent in the previous step. Use this function for samplers that add fresh
    noise, because it changes only the signal in x. `blend_noised_` would average the fresh noise in x with `noise`,
    which is the same in every step. A weighted average of two independent noises has a lower standard deviation than
    the noise that the model expects. In the simulation of Euler a in tests/test_sampler_steps.py, the standard
    deviation falls to 0.86 of the expected value.
    """
    x.add_((anchor - denoised).to(x) * signal_scale.to(x.dtype), alpha=c1)
