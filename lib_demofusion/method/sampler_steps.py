"""Identifies the first model call of each sampler step. The skip residual is applied before this call.

With UniPC, the skip residual is applied again in the callback. See StepDetector.blends_in_callback.

Some samplers call the model several times per step. With many of these samplers, the noise level is not enough to
identify the first call. For example, the second call of a step in Heun has the same noise level as the first call of
the next step. At eta = 1, the same is true of DPM2 a and DPM++ 2S a. The detectors for these samplers therefore count
the calls, or use the order of calls and callbacks. Only the detector for DPM adaptive also compares noise levels.

Sampling functions are identified by their names in k-diffusion and in the webui.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

TWO_CALLS = frozenset({"sample_heun", "sample_dpm_2", "sample_dpmpp_sde", "restart_sampler"})
"""Samplers that call the model twice in every step except the last, which ends at zero noise."""
TWO_CALLS_ANCESTRAL = frozenset({"sample_dpm_2_ancestral", "sample_dpmpp_2s_ancestral"})
"""Ancestral samplers that call the model twice in a step, unless sigma_down is zero (see `sigma_down_is_zero`).

At eta = 1, sigma_down is usually zero only in the last step. With a larger eta, it can also be zero in earlier steps.
"""
TWO_CALLS_UNTIL_ZERO = frozenset({"sample_dpmpp_2s_ancestral_RF"})
"""Samplers of Forge Neo that call the model twice in every step except the last, which ends at zero noise.

Unlike the samplers in TWO_CALLS_ANCESTRAL, they call the model twice even if sigma_down is zero.
"""
FLOW_FORMS = {
    "sample_dpm_2_ancestral": "sample_dpm_2_ancestral_RF",
    "sample_dpmpp_2s_ancestral": "sample_dpmpp_2s_ancestral_RF",
}
"""Maps an ancestral sampling function to the function that it runs instead if the model is a flow model.

Forge replaces the first function in this way, and Forge Neo replaces the second.
"""
NEVER_STOCHASTIC = frozenset({"sample_res_multistep", "sample_res_multistep_cfg_pp"})
"""Sampling functions that accept a noise sampler, but never add noise."""

ALWAYS_STOCHASTIC = frozenset({"sample_lcm", "restart_sampler", "sample_ddpm", "sample_er_sde"})
"""Sampling functions that count as stochastic in every run, independent of their arguments.

Restart (`restart_sampler`) is one of them, although it adds noise only in runs of at least 20 steps.
"""


class StepDetector:
    """The base class of all detectors, and the detector for samplers that call the model once per step.

    A detector must be informed of every model call and every callback of a sampler, in their order.
    """

    blends_in_callback = False
    """Whether the skip residual must be applied again in the callback.

    UniPC evaluates the model on a predicted x, and then discards this x. It continues from a corrected x, which only
    the callback receives.
    """

    copies_x = False
    """Whether the model receives a copy of the sampler's x. Only the callback can then change the sampler's own x."""

    rejects_steps = False
    """Whether the sampler can reject a step after its callback, and then repeat the step."""

    def is_step_start(self, level: float) -> bool:
        """Returns whether the next model call, at noise level `level`, begins a step. Call this once per model call."""
        return True

    def after_step(self, i: int) -> None:
        """Informs the detector of the sampler's callback for step `i`."""

    def callback_scale(self, i: int, level: float) -> float | None:
        """Returns the factor that converts the callback's x to the scale of the model's x at `level`.

        Returns None if the callback's x must not be blended.
        """
        return 1.0 if self.blends_in_callback else None


class SkipCalls(StepDetector):
    """The detector for samplers that run their callback after the first model call of a step.

    `more_calls(i)` is the number of model calls that follow in step `i` after the callback.
    """

    def __init__(self, more_calls: Callable[[int], int] = lambda i: 1):
        self._more_calls = more_calls
        self._left = 0

    def is_step_start(self, level: float) -> bool:
        start = self._left == 0
        self._left = max(self._left - 1, 0)
        return start

    def after_step(self, i: int) -> None:
        self._left = self._more_calls(i)


class CountedCalls(StepDetector):
    """The detector for samplers in which the numbers of the model calls that begin a step are known in advance.

    `starts(call)` returns whether model call number `call`, counted from 0, begins a step.
    """

    def __init__(self, starts: Callable[[int], bool]):
        self._starts = starts
        self._call = -1

    def is_step_start(self, level: float) -> bool:
        self._call += 1
        return self._starts(self._call)


class FirstCallAtNewLevel(StepDetector):
    """The detector for DPM adaptive.

    After a rejected step, DPM adaptive begins again at the same noise level, with the same x. The skip residual was
    already applied to this x. The second attempt therefore does not count as the beginning of a step.
    """

    rejects_steps = True

    def __init__(self) -> None:
        self._pending = True
        self._blended: float | None = None

    def is_step_start(self, level: float) -> bool:
        start = self._pending and level != self._blended
        self._pending = False
        if start:
            self._blended = level
        return start

    def after_step(self, i: int) -> None:
        self._pending = True


class PredictorCorrector(StepDetector):
    """The detector for UniPC.

    UniPC passes a predicted x to its model, but it continues from a corrected x. Only its callback receives the
    corrected x.
    """

    blends_in_callback = True


class ScaledPredictorCorrector(PredictorCorrector):
    """The detector for UniPC in Forge Neo.

    This UniPC stores x / sqrt(1 + sigma^2), and passes a rescaled copy to its model. Its last callback receives the
    result of the sampling, which must not be blended. `last` is the number of the last step, counted from 0.
    """

    copies_x = True

    def __init__(self, last: int):
        self._last = last

    def callback_scale(self, i: int, level: float) -> float | None:
        return None if i >= self._last else math.sqrt(1 + level**2)


def dpm_fast_orders(n: int) -> list[int]:
    """Returns the number of calls in each step of DPM fast, for `n` calls in all (k-diffusion, `dpm_solver_fast`)."""
    steps = n // 3 + 1
    return [3] * (steps - 2) + [2, 1] if n % 3 == 0 else [3] * (steps - 1) + [n % 3]


def dpm_fast_starts(n: int) -> set[int]:
    """Returns the numbers of the calls that begin a step of DPM fast, for `n` calls in all."""
    orders = dpm_fast_orders(n)
    return {sum(orders[:i]) for i in range(len(orders))}


def sigma_down_is_zero(sigma: Tensor, sigma_next: Tensor, eta: float) -> bool:
    """Returns whether an ancestral step removes all noise before it adds fresh noise. Such a step has no second call.

    The result can depend on rounding. The computation therefore has the same precision and the same order of operations
    as in k-diffusion.
    """
    return bool(sigma_next == 0 or sigma_down(sigma, sigma_next, eta) == 0)


def sigma_down(sigma: Tensor, sigma_next: Tensor, eta: float) -> Tensor:
    """Returns the noise level after the deterministic part of an ancestral step, before it adds fresh noise."""
    if not eta:
        return sigma_next
    sigma_up = min(sigma_next, eta * (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5)
    return (sigma_next**2 - sigma_up**2) ** 0.5


def flow_sigma_down_is_zero(sigma: Tensor, sigma_next: Tensor, eta: float) -> bool:
    """Returns whether an ancestral step of a flow model removes all noise before it adds fresh noise."""
    return bool(sigma_next * (1 + (sigma_next / sigma - 1) * eta) == 0)


def function_name(function: Any) -> str:
    """Returns the name of a sampling function, even if an extension has wrapped it in a partial."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def flow_form(name: str) -> str:
    """Returns the name of the function that really runs if `name` is called with a flow model (see FLOW_FORMS)."""
    return FLOW_FORMS.get(name, name)


def more_calls_of(name: str, sigmas: Tensor, eta: float = 1.0) -> Callable[[int], int] | None:
    """Returns a function `more_calls(i)`, which returns how many model calls follow the first call of step i.

    Returns None for samplers that `make_detector` handles without such a function. `sigmas` are the noise levels of the
    run, with zero at the end. Sources: k-diffusion, and the sampling functions of Forge and Forge Neo.
    """
    last = len(sigmas) - 2
    if name == "sample_dpm_2_ancestral_RF":
        return lambda i: int(not flow_sigma_down_is_zero(sigmas[i], sigmas[i + 1], eta))
    if name in TWO_CALLS_ANCESTRAL:
        return lambda i: int(not sigma_down_is_zero(sigmas[i], sigmas[i + 1], eta))
    if name in TWO_CALLS_UNTIL_ZERO:
        return lambda i: int(bool(sigmas[i + 1] != 0))
    if name == "sample_heunpp2":
        return lambda i: min(last - i, 2)
    if name == "sample_Kohaku_LoNyu_Yog":
        return lambda i: 2 if i <= (last + 1) / 2 else 0
    return None


def make_detector(
    name: str,
    sigmas: Tensor | None = None,
    n: int | None = None,
    eta: float = 1.0,
    second_order: bool = False,
) -> StepDetector:
    """Returns the detector for the sampling function `name`. For a flow model, pass the result of `flow_form` as name.

    `sigmas`, `n` and `eta` are arguments of the sampling function. A function whose name is not in this file is assumed
    to call the model twice per step if `second_order` is True, and once per step otherwise.
    """
    more_calls = more_calls_of(name, sigmas, eta) if sigmas is not None else None
    if more_calls is not None:
        return SkipCalls(more_calls)
    if name == "plms":
        return CountedCalls(lambda call: call != 1)
    if name == "sample_dpm_fast" and n is not None:
        return CountedCalls(dpm_fast_starts(n).__contains__)
    if name == "sample_dpm_adaptive":
        return FirstCallAtNewLevel()
    if name == "unipc":
        return PredictorCorrector()
    if name == "sample_unipc" and sigmas is not None:
        return ScaledPredictorCorrector(len(sigmas) - 2)
    if name in TWO_CALLS | TWO_CALLS_ANCESTRAL or second_order:
        return SkipCalls()
    return StepDetector()


def is_stochastic(name: str, eta: float | None, churn: float = 0.0, draws: bool = False) -> bool:
    """Returns whether the sampling function `name` adds fresh noise in a run, or counts as if it did.

    `eta` and `churn` are arguments of the function. `eta` is None if the function has no such argument. `draws` is True
    if the function accepts a noise sampler. A function that accepts a noise sampler but no eta is assumed to add noise,
    unless it is in NEVER_STOCHASTIC.
    """
    if name in ALWAYS_STOCHASTIC or churn > 0:
        return True
    return bool(eta) if eta is not None else draws and name not in NEVER_STOCHASTIC
