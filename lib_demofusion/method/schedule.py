"""Computes the schedule of a stage: the timestep of a noise level, the weights at a timestep, and the number of steps.

The cosine weights (arXiv 2311.16973, section 3) are functions of Stable Diffusion's timestep t (0 to 1000). The values
of the presets were chosen for these timesteps. A flow model has a different noise schedule: x = (1 - sigma) signal +
sigma noise, with sigma from 1 to 0. A `Timestep` converts such a sigma to t.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lib_demofusion.settings.fields import Settings

Timestep = Callable[[float], float]
"""A function that converts the sigma of a flow model (0 to 1) to a timestep (0 to 1000)."""

TIMESTEPS, BETA_FIRST, BETA_LAST = 1000, 0.00085, 0.012
"""Stable Diffusion's training schedule: the number of timesteps T, and the first and last beta.

The square root of beta increases linearly between the first and the last timestep.
"""


def snr_timestep(sigma: float) -> float:
    """Returns the timestep at which Stable Diffusion has the signal-to-noise ratio of a flow model at `sigma`.

    A flow model's x divided by (1 - sigma) is signal + s noise, with s = sigma / (1 - sigma). In the k-diffusion
    samplers, x has the same form with s as sigma. Between two timesteps, log s is interpolated linearly, as in
    k-diffusion. The result is clamped to 0 to 999.
    """
    if sigma <= 0 or sigma >= 1:
        return float(TIMESTEPS - 1) if sigma >= 1 else 0.0
    table, wanted = log_sigmas(), math.log(sigma / (1 - sigma))
    above = min(max(bisect.bisect_right(table, wanted), 1), TIMESTEPS - 1)
    share = (wanted - table[above - 1]) / (table[above] - table[above - 1])
    return above - 1 + min(max(share, 0.0), 1.0)


def linear_timestep(sigma: float) -> float:
    """Returns 1000 * sigma. Flow models such as SD3 receive this number as their timestep."""
    return TIMESTEPS * sigma


def unshifted_timestep(shift: float) -> Timestep:
    """Returns a function that converts a shifted sigma to a timestep without the shift.

    A flow model with a shift uses sigma = shift * u / (1 + (shift - 1) * u) for u from 1 to 0. The function converts
    sigma to 1000 * u. Models with the parameter mu have a shift of exp(mu).
    """

    def timestep(sigma: float) -> float:
        return TIMESTEPS * sigma / (shift - (shift - 1) * sigma)

    return timestep


def flow_level(timestep: float) -> float:
    """Returns the sigma at which a flow model has the signal-to-noise ratio of Stable Diffusion at `timestep`.

    This function is the inverse of `snr_timestep`.
    """
    table = log_sigmas()
    at = min(max(timestep, 0.0), TIMESTEPS - 1.0)
    below = min(int(at), TIMESTEPS - 2)
    log_sigma = table[below] + (at - below) * (table[below + 1] - table[below])
    return 1 / (1 + math.exp(-log_sigma))


@functools.cache
def log_sigmas() -> tuple[float, ...]:
    """Returns Stable Diffusion's log sigma at each timestep: sigma = sqrt((1 - alphas_cumprod) / alphas_cumprod)."""
    first, last = math.sqrt(BETA_FIRST), math.sqrt(BETA_LAST)
    found, alpha = [], 1.0
    for i in range(TIMESTEPS):
        alpha *= 1 - (first + (last - first) * i / (TIMESTEPS - 1)) ** 2
        found.append(math.log((1 - alpha) / alpha) / 2)
    return tuple(found)


NEGLIGIBLE = 2.0**-25
"""A weight at or below this value has no effect on a weighted mean in float32."""


@dataclass(frozen=True)
class Weights:
    """The paper's c1, c2, c3 at one noise level."""

    skip: float
    """c1: weight with which the skip residual blends the anchor into x."""
    dilated: float
    """c2: weight of the dilated views in the fused prediction."""
    blur: float
    """c3: the standard deviation of the blur for the dilated views, as a fraction of the field `sigma`."""


def cosine_factor(t: float) -> float:
    """Returns (1 + cos(pi (T - t) / T)) / 2. The result is 1 at pure noise (t = T), and 0 at t = 0."""
    return (1 + math.cos(math.pi * (TIMESTEPS - t) / TIMESTEPS)) / 2


def weights_at(t: float, settings: Settings) -> Weights:
    """Returns the weights at the timestep `t` (0 to 1000, also with fractions). `t` is not the number of a step."""
    factor = cosine_factor(t)
    return Weights(
        skip=factor**settings.cosine_scale_1,
        dilated=_with_thresholds(factor**settings.cosine_scale_2, settings),
        blur=0.99 * factor**settings.cosine_scale_3 + 0.01,
    )


def _with_thresholds(c2: float, settings: Settings) -> float:
    """Applies the thresholds of the settings to the weight c2 of the dilated views.

    If c2 is at or below its threshold, the result is 0, and dilated views are not evaluated. If 1 - c2, the weight of
    the local views, is at or below its threshold, the result is 1, and local views are not evaluated.
    """
    if c2 <= max(settings.dilated_threshold, NEGLIGIBLE):
        return 0.0
    return 1.0 if 1 - c2 <= max(settings.local_threshold, NEGLIGIBLE) else c2


TWO_NEEDED = frozenset(
    {"sample_dpmpp_2m_sde", "sample_dpmpp_3m_sde", "sample_dpm_fast", "sample_dpm_adaptive", "sample_unipc"}
)
"""Sampling functions that raise an error or return a noisy x if a run has only one step.

DPM++ 2M SDE and DPM++ 3M SDE need a step that does not end at zero noise. DPM fast and DPM adaptive end at the last
noise level above zero. In a run of one step, they would also begin at this level, so they would have nothing to do. In
Forge Neo, UniPC only evaluates the model in its first step, and changes x from the second step on.
"""

TIMESTEP_SAMPLERS = frozenset({"ddim", "ddim_cfgpp", "plms", "unipc"})
"""Sampling functions of the webui whose schedule consists of timesteps.

The webui adds the noise of one timestep of the schedule, and these functions begin at the next lower timestep.
"""

FEWEST_TIMESTEPS = 4
"""Minimum number of steps of the functions in TIMESTEP_SAMPLERS.

With fewer steps, there would be too large a difference between the timestep of the noise and the timestep at which the
function begins.
"""


def schedule_steps(steps: int, settings: Settings) -> int:
    """Returns the number of steps in the schedule of the stages, for a base pass of `steps` steps.

    A stage runs the last part of this schedule.
    """
    return min(steps, settings.hires_steps or steps)


def steps_of_stage(steps: int, strength: float) -> int:
    """Returns the number of steps that a stage runs at the end of the schedule."""
    return max(1, round(steps * strength))


def least_steps(name: str, order: int = 1) -> int:
    """Returns the minimum number of steps of the sampling function `name`.

    `order` is the webui's setting for the order of UniPC.
    """
    if name in TIMESTEP_SAMPLERS:
        return max(FEWEST_TIMESTEPS, order if name == "unipc" else 1)
    return 2 if name in TWO_NEEDED else 1


def long_enough(steps: int, strength: float, least: int) -> int:
    """Returns the number of steps of the shortest schedule that is long enough for a stage.

    The schedule has at least `steps` steps. A stage runs the fraction `strength` at the end of the schedule. This
    fraction must have at least `least` steps. The stage begins at about the same noise level as in a schedule of
    `steps` steps.
    """
    while steps_of_stage(steps, strength) < least:
        steps += 1
    return steps


@dataclass(frozen=True)
class StageSteps:
    """The schedule of a stage, and the part of it that the stage runs."""

    schedule: int
    """Number of steps in the whole schedule."""
    run: int
    """Number of steps that the stage runs. The stage begins at noise level number `schedule - run`, counted from 0."""


Levels = Callable[[int], Sequence[float]]
"""A function that returns the decreasing noise levels of a schedule, including the final zero.

Its argument is the number of steps.
"""

LONGEST = 4096
"""If a schedule has at least this number of steps, `steps_by_level` tries no longer schedule.

Even the last step of such a schedule begins at a lower noise level than a stage with any preset.
"""


def steps_by_share(steps: int, strength: float, least: int) -> StageSteps:
    """Returns the steps of a stage that runs the fraction `strength` at the end of a schedule of `steps` steps.

    If this fraction has fewer than `least` steps, a longer schedule is used (see `long_enough`).
    """
    schedule = long_enough(steps, strength, least)
    return StageSteps(schedule, steps_of_stage(schedule, strength))


def steps_by_level(steps: int, strength: float, least: int, levels: Levels) -> StageSteps:
    """Returns the steps of a stage that begins at the noise level that corresponds to `strength`. For flow models.

    The stage runs as many steps as with `steps_by_share`, but these are the last steps of a schedule with a different
    length. `steps_by_share` would begin at very different noise levels, because the shift of a flow model moves most of
    a schedule to high levels. For example, the second half of a schedule begins at a sigma of 0.75 with a shift of 3,
    and at 0.9 with a shift of 9.

    At its first noise level, the stage should have the signal-to-noise ratio of Stable Diffusion's timestep
    1000 * strength. The function chooses the length of the schedule that comes closest to this ratio. With a strength
    of 1, a stage runs its whole schedule.
    """
    run = max(steps_of_stage(steps, strength), least)
    if strength >= 1:
        return StageSteps(run, run)
    wanted, tried = flow_level(TIMESTEPS * strength), {}

    def too_high(length: int) -> bool:
        """Returns whether the last `run` steps of a schedule of `length` steps begin above the sigma `wanted`."""
        found = levels(length)
        # some schedulers return fewer levels, because they remove levels that are equal after rounding
        start = max(len(found) - 1 - run, 0)
        tried[length] = float(found[start]), start
        return tried[length][0] > wanted

    low, high = run, run
    while too_high(high) and high < LONGEST:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if too_high(middle) else (low, middle)
    schedule = min(tried, key=lambda length: abs(tried[length][0] - wanted))
    return StageSteps(schedule, schedule - tried[schedule][1])
