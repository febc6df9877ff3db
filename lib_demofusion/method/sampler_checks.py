"""Recognizes samplers with which the stages would give wrong images, and explains why.

`CallGuard` checks a sampler while it runs. The skip residual is written into the tensor that the sampler passes to its
model. This has an effect only if this tensor is the sampler's own x. The guard compares the tensors of model calls and
callbacks by their memory addresses, because reading their values would wait for the device. The sampler's callback must
receive a tensor with the same memory as the tensor that the model received. The docstrings of `step_begins` and
`callback` describe two exceptions. There must also be one callback between two model calls that begin a step. All
samplers of k-diffusion pass these checks. UniPC does not pass them. UniPC has a detector of its own, and no guard.

`flow_problem` checks a sampler before it runs on a flow model. A sampler that adds no noise integrates
(x - denoised) / sigma over sigma. This quotient is the derivative of x both for k-diffusion's x = signal + sigma noise
and for a flow model's x = (1 - sigma) signal + sigma noise. Such a sampler therefore works with both kinds of models. A
sampler that adds noise must also scale the signal down on a flow model. Only samplers that support flow models do this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lib_demofusion.method.sampler_steps import StepDetector

NOT_ITS_X = "it passes a copy of x to its model, so DemoFusion cannot change x; choose another sampler"
CALLS_DO_NOT_FIT = "it does not call its model as often per step as DemoFusion expects; choose another sampler"


class UnknownSampler(ValueError):
    """Raised if a sampler's model calls and callbacks do not fit its detector."""


class CallGuard:
    """Compares the tensors that a sampler passes to its model with the tensors that it passes to its callback."""

    def __init__(self, x: Tensor | None = None, rejects_steps: bool = False):
        """`x` is the tensor that the sampling function received, or None if this tensor is not known.

        `rejects_steps` is the attribute of the sampler's detector with the same name.
        """
        self._given = self._shown = x
        self._evaluated_given: bool | None = None
        self._rejects_steps = rejects_steps
        self._written: Tensor | None = None
        self._begun = False

    def step_begins(self, x: Tensor) -> None:
        """Records the x of a model call that begins a step.

        Most samplers pass the x of the current step to their callback. DDIM and similar samplers pass the x of the next
        step. The next step then needs no check, because its x is already known as the sampler's own x.
        Raises UnknownSampler if the previous step needed a check, but no callback followed.
        """
        if self._written is not None:
            raise UnknownSampler(CALLS_DO_NOT_FIT)
        if self._evaluated_given is None:
            self._evaluated_given = _same_memory(x, self._given)
        self._begun = True
        # while the guard holds this reference, torch cannot use the same memory for another tensor
        self._written = None if _same_memory(x, self._shown) else x

    def callback(self, x: Tensor) -> None:
        """Checks the x of the sampler's callback.

        IPNDM and DEIS pass the x that the sampling function received to every callback. The guard accepts this x if the
        first model call also received it. Raises UnknownSampler if the step needs a check (see `step_begins`) and the
        callback receives any other x than the model. Also raises it if no model call began a step since the previous
        callback, unless the sampler can reject steps.
        """
        if not (self._begun or self._rejects_steps):
            raise UnknownSampler(CALLS_DO_NOT_FIT)
        is_known = _same_memory(x, self._written) or (self._evaluated_given and _same_memory(x, self._given))
        if self._written is not None and not is_known:
            raise UnknownSampler(NOT_ITS_X)
        self._shown, self._written, self._begun = x, None, False

    def end(self) -> None:
        """Raises UnknownSampler if the last step needed a check, but no callback followed."""
        if self._written is not None:
            raise UnknownSampler(CALLS_DO_NOT_FIT)


def guard_for(detector: StepDetector, x: Tensor | None = None) -> CallGuard | None:
    """Returns the guard for a sampling function that received x, or None for UniPC, which would fail the checks."""
    return None if detector.blends_in_callback else CallGuard(x, detector.rejects_steps)


def _same_memory(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and (a is b or a.data_ptr() == b.data_ptr())


TIMESTEPS = "it uses timesteps of another schedule"
SCALED = "it scales the latent for another schedule"
NOISE = "it adds noise without scaling the image down, which is wrong for such models"
ADVICE = "choose Euler or another sampler that adds no noise"

WRONG_ON_FLOW = {
    "ddim": TIMESTEPS,
    "ddim_cfgpp": TIMESTEPS,
    "plms": TIMESTEPS,
    "unipc": TIMESTEPS,
    "sample_unipc": SCALED,
    "sample_ddpm": SCALED,
    "restart_sampler": NOISE,
    "sample_Kohaku_LoNyu_Yog": NOISE,
}
"""The reasons why `flow_problem` refuses some sampling functions in every run, by the name of the function."""

FLOW_SUFFIX = "_RF"
"""Suffix of the names of functions that are written for flow models."""

FLOW_NAMES = frozenset({"_is_const", "offset_first_sigma_for_snr", "sigma_to_half_log_snr", "noise_scaling"})
"""Names of functions of Forge Neo that treat flow models differently from other models.

A sampling function supports flow models if its code uses at least one of these names.
"""

FLUX_SCHEDULE = "PredictionFlux"
"""The name of the schedule class of Flux and Chroma.

Forge's sampling functions that support flow models check for this class. They do not recognize other flow models.
"""


def flow_problem(label: str, name: str, draws_noise: bool, knows_flow: bool, churn: float = 0.0) -> str | None:
    """Returns the reason why a sampler gives wrong images with a flow model, or None if the sampler works.

    The reason completes a message that begins with "DemoFusion does not work with".

    `label` is the sampler's name in the webui, and `name` is the name of its function. `draws_noise` is True if the
    function adds noise in this run (see `sampler_steps.is_stochastic`). `knows_flow` is the result of the function
    `knows_flow`. `churn` is the setting "sigma churn".
    """
    why = WRONG_ON_FLOW.get(name)
    if why is None and churn > 0:
        return "Sigma churn on flow models: its noise is wrong for such models; set it to 0"
    if why is None and draws_noise and not knows_flow:
        why = NOISE
    return None if why is None else f"the sampler {label} on flow models: {why}; {ADVICE}"


def knows_flow(function: Callable[..., Any], predictor: Any) -> bool:
    """Returns whether a sampling function treats a model as a flow model. `predictor` is the model's schedule in Forge.

    A function with the same name can support flow models in Forge, but not in Forge Neo, and vice versa. The result
    therefore depends on the names that the code of the function uses.
    """
    code = getattr(_unwrapped(function), "__code__", None)
    if code is None:
        return False
    if code.co_name.endswith(FLOW_SUFFIX):
        return True
    names = {*code.co_names, *code.co_varnames, *code.co_freevars}
    if FLUX_SCHEDULE in names:
        return type(predictor).__name__ == FLUX_SCHEDULE
    return bool(FLOW_NAMES & names)


def _unwrapped(function: Callable[..., Any]) -> Any:
    """Returns the original function inside decorators such as torch.no_grad."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function
