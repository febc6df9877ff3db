"""The noise levels at which a sampler will call its model, in order, from the arguments that it is given.

Nothing but DPM adaptive looks at the picture to decide where to call. The formulas are those of the papers, in the
order of operations of k-diffusion and of the webui: next to a threshold rounding decides too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lib_demofusion.method.step_gate import TWO_CALLS, dpm_fast_orders, sigma_down

Arguments = Mapping[str, Any]
"""What the sampling function is called with: sigmas, or sigma_min, sigma_max and n, or timesteps; eta, s_churn, ..."""

Levels = Iterator[Tensor]


def call_levels(name: str, arguments: Arguments, second_order: bool = False) -> list[Tensor] | None:
    """Returns the scalar level of every model call of the sampling function `name`, None where that is not known.

    A function that is not known by name is taken for Heun where `second_order` says so and else for Euler.
    """
    if name == "sample_dpm_adaptive" or arguments.get("skip_type") == "logSNR":
        return None
    levels = LEVELS.get(name) or (_heun if second_order or name in TWO_CALLS else _euler)
    needed = "timesteps" if name in IN_TIMESTEPS else "sigma_min" if name == "sample_dpm_fast" else "sigmas"
    return list(levels(arguments)) if arguments.get(needed) is not None else None


def _churned(arguments: Arguments) -> Iterator[tuple[Tensor, Tensor]]:
    """The level of each step after its noise is raised (Karras et al., 2022, algorithm 2), and the next one."""
    sigmas, churn = arguments["sigmas"], arguments.get("s_churn", 0.0)
    gamma = min(churn / (len(sigmas) - 1), 2**0.5 - 1)
    for sigma, following in pairwise(sigmas):
        within = arguments.get("s_tmin", 0.0) <= sigma <= arguments.get("s_tmax", float("inf"))
        yield sigma * ((gamma if within else 0.0) + 1), following


def _euler(arguments: Arguments) -> Levels:
    for sigma, _ in _churned(arguments):
        yield sigma


def _heun(arguments: Arguments) -> Levels:
    for sigma, following in _churned(arguments):
        yield sigma
        if following != 0:
            yield following


def _dpm_2(arguments: Arguments) -> Levels:
    for sigma, following in _churned(arguments):
        yield sigma
        if following != 0:
            yield sigma.log().lerp(following.log(), 0.5).exp()


def _ancestral(arguments: Arguments) -> Levels:
    """DPM2 a and DPM++ 2S a: a second call halfway, in the logarithm, to where the noise is brought down."""
    for sigma, following in pairwise(arguments["sigmas"]):
        yield sigma
        down = sigma_down(sigma, following, _eta(arguments, 1.0))
        if down != 0:
            yield _between(sigma, down, 1 / 2)


def _dpmpp_sde(arguments: Arguments) -> Levels:
    for sigma, following in pairwise(arguments["sigmas"]):
        yield sigma
        if following != 0:
            yield _between(sigma, following, 1 / 2)


def _dpm_fast(arguments: Arguments) -> Levels:
    """DPM-Solver (arXiv 2206.00927, algorithm 3) with steps of even length in log sigma."""
    first, last = (torch.as_tensor(arguments[key]).log().neg() for key in ("sigma_max", "sigma_min"))
    orders = dpm_fast_orders(int(arguments["n"]))
    times = torch.linspace(float(first), float(last), len(orders) + 1, dtype=first.dtype)
    eta = _eta(arguments, 0.0)
    for order, t, following in zip(orders, times, times[1:]):
        down = sigma_down(t.neg().exp(), following.neg().exp(), eta).log().neg() if eta else following
        length = torch.minimum(last, down) - t if eta else down - t
        for i in range(order):
            yield (t + i / order * length).neg().exp()


def _restart(arguments: Arguments) -> Levels:
    """The webui's Restart: of its steps, some are taken again from sigma 2 down to 0.1 (modules/sd_samplers_extra)."""
    sigmas = arguments["sigmas"]
    steps = len(sigmas) - 1
    path = [*pairwise(sigmas)]
    if steps >= 20:
        again, times = (steps // 4, 2) if steps >= 36 else (9, 1)
        sigmas = _karras(steps - again * times, sigmas[-2].item(), sigmas[0].item())
        path = [*pairwise(sigmas)]
        low, high = (int((sigmas - level).abs().argmin()) for level in (0.1, 2))
        if high < low:
            loop = _karras(again + 1, sigmas[low].item(), sigmas[high].item())[:-1]
            path[low:low] = [*pairwise(loop)] * times
    for sigma, following in path:
        yield sigma
        if following != 0:
            yield following


def _karras(n: int, low: float, high: float) -> Tensor:
    """Returns n levels (Karras et al., 2022, equation 5, rho 7) and zero."""
    rho = 7.0
    ends = low ** (1 / rho), high ** (1 / rho)
    sigmas = (ends[1] + torch.linspace(0, 1, n) * (ends[0] - ends[1])) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def _ddim(arguments: Arguments) -> Levels:
    yield from reversed(arguments["timesteps"][1:])


def _plms(arguments: Arguments) -> Levels:
    timesteps = arguments["timesteps"]
    for i, t in enumerate(reversed(timesteps[1:])):
        yield t
        if i == 0:
            yield timesteps[-2]


def _unipc(arguments: Arguments) -> Levels:
    """Evenly from the first timestep to the model's lowest, in the unit of 1000 a schedule, or so in its root."""
    timesteps = arguments["timesteps"]
    first = float(timesteps[-1]) / 1000 + 1 / 1000 if arguments.get("is_img2img") else 1.0
    order = 2 if arguments.get("skip_type") == "time_quadratic" else 1
    times = torch.linspace(first ** (1 / order), 1e-3 ** (1 / order), len(timesteps) + 1) ** order
    yield from (times[:-1] - 1e-3) * 1000


def _between(sigma: Tensor, lower: Tensor, share: float) -> Tensor:
    """Returns the level at a share of the way down, in the logarithm."""
    t, following = sigma.log().neg(), lower.log().neg()
    return (t + share * (following - t)).neg().exp()


def _eta(arguments: Arguments, default: float) -> float:
    eta = arguments.get("eta")
    return default if eta is None else float(eta)


IN_TIMESTEPS = frozenset({"ddim", "ddim_cfgpp", "plms", "unipc"})

LEVELS: dict[str, Callable[[Arguments], Levels]] = {
    "sample_dpm_2": _dpm_2,
    "sample_dpm_2_ancestral": _ancestral,
    "sample_dpmpp_2s_ancestral": _ancestral,
    "sample_dpmpp_sde": _dpmpp_sde,
    "sample_dpm_fast": _dpm_fast,
    "restart_sampler": _restart,
    "ddim": _ddim,
    "ddim_cfgpp": _ddim,
    "plms": _plms,
    "unipc": _unipc,
}
"""Those that differ from Euler and Heun."""
