"""Timesteps of Stable Diffusion's schedule for the noise levels of flow models.

The cosine weights, and the presets that build on them, were chosen in Stable Diffusion's timesteps t (0 to 1000). A
flow model has another schedule: x = (1 - sigma) signal + sigma noise, with sigma from 1 to 0. A `Timestep` converts
such a sigma to t.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Callable

Timestep = Callable[[float], float]
"""Converts the sigma of a flow model, 0 to 1, to a timestep from 0 to 1000."""

STEPS, BETA_FIRST, BETA_LAST = 1000, 0.00085, 0.012
"""Stable Diffusion's training schedule: beta is linear in its square root."""


def snr_timestep(sigma: float) -> float:
    """Returns the timestep at which Stable Diffusion has the same signal-to-noise ratio.

    Scaling x by 1 / (1 - sigma) turns it into signal + sigma / (1 - sigma) noise, the form of the k-diffusion samplers.
    Between two timesteps log sigma is interpolated linearly, as k-diffusion does. The result is 0 to 999; the ends hold
    for levels beyond Stable Diffusion's.
    """
    if sigma <= 0 or sigma >= 1:
        return float(STEPS - 1) if sigma >= 1 else 0.0
    table, wanted = _log_sigmas(), math.log(sigma / (1 - sigma))
    above = min(max(bisect.bisect_right(table, wanted), 1), STEPS - 1)
    share = (wanted - table[above - 1]) / (table[above] - table[above - 1])
    return above - 1 + min(max(share, 0.0), 1.0)


def linear_timestep(sigma: float) -> float:
    """Returns 1000 sigma, the timestep that flow models themselves are given."""
    return STEPS * sigma


def unshifted_timestep(shift: float) -> Timestep:
    """Returns the function that undoes a model's shift: sigma = shift u / (1 + (shift - 1) u) becomes 1000 u.

    Models with the parameter mu have a shift of exp(mu).
    """

    def timestep(sigma: float) -> float:
        return STEPS * sigma / (shift - (shift - 1) * sigma)

    return timestep


def flow_level(timestep: float) -> float:
    """Returns the sigma of a flow model with the signal-to-noise ratio of a timestep: the inverse of `snr_timestep`."""
    table = _log_sigmas()
    at = min(max(timestep, 0.0), STEPS - 1.0)
    below = min(int(at), STEPS - 2)
    log_sigma = table[below] + (at - below) * (table[below + 1] - table[below])
    return 1 / (1 + math.exp(-log_sigma))


@functools.cache
def _log_sigmas() -> tuple[float, ...]:
    """Returns log sigma at each timestep, where sigma = sqrt((1 - alphas_cumprod) / alphas_cumprod)."""
    first, last = math.sqrt(BETA_FIRST), math.sqrt(BETA_LAST)
    found, alpha = [], 1.0
    for i in range(STEPS):
        alpha *= 1 - (first + (last - first) * i / (STEPS - 1)) ** 2
        found.append(math.log((1 - alpha) / alpha) / 2)
    return tuple(found)
