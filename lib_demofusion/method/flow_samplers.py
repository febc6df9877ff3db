"""Checks whether sampling functions of Forge and Forge Neo are correct for flow models, and explains refusals.

A sampler that adds no noise integrates (x - denoised) / sigma over sigma. This is the derivative of x in k-diffusion's
space, x = signal + sigma noise, and also of a flow model's x = (1 - sigma) signal + sigma noise. A sampler that adds
noise must also scale the signal down. Only samplers that support flow models do this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

TIMESTEPS = "it converts timesteps of Stable Diffusion's schedule"
SCALED = "it scales the latent for Stable Diffusion's schedule"
NOISE = "it adds noise as for Stable Diffusion, without scaling the image down"
ADVICE = "choose Euler or another sampler that adds no noise"

WRONG = {
    "ddim": TIMESTEPS,
    "ddim_cfgpp": TIMESTEPS,
    "plms": TIMESTEPS,
    "unipc": TIMESTEPS,
    "sample_unipc": SCALED,
    "sample_ddpm": SCALED,
    "restart_sampler": NOISE,
    "sample_Kohaku_LoNyu_Yog": NOISE,
}
"""Sampling functions that are always wrong on flow models, and why."""

FOR_FLOW = "_RF"
"""Suffix of the names of functions that are written for flow models."""

FLOW_NAMES = frozenset({"_is_const", "offset_first_sigma_for_snr", "sigma_to_half_log_snr", "noise_scaling"})
"""Names in the code of those functions of Forge Neo that check the kind of model."""

FLUX_ONLY = "PredictionFlux"
"""The schedule class of Flux and Chroma, by which the functions of Forge recognize a flow model."""


def flow_problem(label: str, name: str, draws_noise: bool, knows_flow: bool, churn: float = 0.0) -> str | None:
    """Returns why a sampler is wrong on a flow model, to follow "DemoFusion does not work with", or None.

    `label` is the sampler's name in the webui, and `name` is the name of its function. `draws_noise` is True if it adds
    noise in this run (see `step_gate.is_stochastic`). `knows_flow` is the result of the function `knows_flow`.
    """
    why = WRONG.get(name)
    if why is None and churn > 0:
        return "Sigma churn on flow models: it adds noise as for Stable Diffusion; set it to 0"
    if why is None and draws_noise and not knows_flow:
        why = NOISE
    return None if why is None else f"the sampler {label} on flow models: {why}; {ADVICE}"


def knows_flow(function: Callable[..., Any], predictor: Any) -> bool:
    """Returns whether a sampling function treats the model of `predictor`, the host's schedule, as a flow model.

    Forge and Forge Neo have functions of the same name that differ in this, so it is read from the names that the
    function's code uses.
    """
    code = getattr(_unwrapped(function), "__code__", None)
    if code is None:
        return False
    if code.co_name.endswith(FOR_FLOW):
        return True
    names = {*code.co_names, *code.co_varnames, *code.co_freevars}
    if FLUX_ONLY in names:
        return type(predictor).__name__ == FLUX_ONLY
    return bool(FLOW_NAMES & names)


def _unwrapped(function: Callable[..., Any]) -> Any:
    """Returns the original of a decorated function, such as one decorated with torch.no_grad."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function
