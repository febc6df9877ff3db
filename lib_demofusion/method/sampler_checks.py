"""Recognizes samplers with which the stages would give wrong images, and explains why.

`CallGuard` runs while a sampler runs. The skip residual is written into the tensor that the sampler passes to its
model, and has an effect only if this tensor is the sampler's own x. Two checks show this without reading values from
the device. The sampler's callback must receive a tensor with the same memory as the sampler's model, and there must be
one callback between two calls that begin a step. All samplers of k-diffusion and of the webuis pass these checks,
except UniPC.

`flow_problem` checks a sampler before it runs on a flow model. A sampler that adds no noise integrates
(x - denoised) / sigma over sigma. This is the derivative of x in k-diffusion's space, x = signal + sigma noise, and
also of a flow model's x = (1 - sigma) signal + sigma noise. A sampler that adds noise must also scale the signal down.
Only samplers that support flow models do this.
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
        """`x` is the tensor that the sampling function received, if known."""
        self._given = self._shown = x
        self._evaluated_given: bool | None = None
        self._rejects_steps = rejects_steps
        self._written: Tensor | None = None
        self._begun = False

    def step_begins(self, x: Tensor) -> None:
        """Records the x of a model call that begins a step.

        DDIM and similar samplers pass the x of the next step to their callback. All other samplers pass the x of the
        current step.
        Raises UnknownSampler if there was no callback for the previous step.
        """
        if self._written is not None:
            raise UnknownSampler(CALLS_DO_NOT_FIT)
        if self._evaluated_given is None:
            self._evaluated_given = _same_memory(x, self._given)
        self._begun = True
        # the reference prevents torch from using this memory for another tensor
        self._written = None if _same_memory(x, self._shown) else x

    def callback(self, x: Tensor) -> None:
        """Records the x of the sampler's callback.

        IPNDM and DEIS pass the x that they received to every callback. This is accepted if their first model call
        received the same x. Raises UnknownSampler if the callback's x is not the x that the model received, or if no
        call began a step.
        """
        if not (self._begun or self._rejects_steps):
            raise UnknownSampler(CALLS_DO_NOT_FIT)
        is_known = _same_memory(x, self._written) or (self._evaluated_given and _same_memory(x, self._given))
        if self._written is not None and not is_known:
            raise UnknownSampler(NOT_ITS_X)
        self._shown, self._written, self._begun = x, None, False

    def end(self) -> None:
        """Raises UnknownSampler if there was no callback for the last step."""
        if self._written is not None:
            raise UnknownSampler(CALLS_DO_NOT_FIT)


def guard_for(detector: StepDetector, x: Tensor | None = None) -> CallGuard | None:
    """Returns the guard for a sampling function that received x, or None for UniPC, which copies x."""
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
"""Sampling functions that always give wrong images with flow models, and the reasons."""

FOR_FLOW = "_RF"
"""Suffix of the names of functions that are written for flow models."""

FLOW_NAMES = frozenset({"_is_const", "offset_first_sigma_for_snr", "sigma_to_half_log_snr", "noise_scaling"})
"""Names that a sampling function of Forge Neo uses in its code if it checks whether the model is a flow model."""

FLUX_ONLY = "PredictionFlux"
"""The schedule class of Flux and Chroma. Forge's sampling functions use it to recognize a flow model."""


def flow_problem(label: str, name: str, draws_noise: bool, knows_flow: bool, churn: float = 0.0) -> str | None:
    """Returns the reason why a sampler gives wrong images with a flow model, or None if it works.

    The reason completes a message that begins with "DemoFusion does not work with".

    `label` is the sampler's name in the webui, and `name` is the name of its function. `draws_noise` is True if the
    function adds noise in this run (see `sampler_steps.is_stochastic`). `knows_flow` is the result of the function
    `knows_flow`.
    """
    why = WRONG_ON_FLOW.get(name)
    if why is None and churn > 0:
        return "Sigma churn on flow models: its noise is wrong for such models; set it to 0"
    if why is None and draws_noise and not knows_flow:
        why = NOISE
    return None if why is None else f"the sampler {label} on flow models: {why}; {ADVICE}"


def knows_flow(function: Callable[..., Any], predictor: Any) -> bool:
    """Returns whether a sampling function treats the model of `predictor`, the host's schedule, as a flow model.

    Forge and Forge Neo have sampling functions with the same names, and only some of these functions support flow
    models. The names that the code of a function uses show whether this function supports them.
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
