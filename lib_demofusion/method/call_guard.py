"""Notices a sampler whose calls do not fit its gate, so that the skip residual would have no effect or a wrong one.

The skip residual is written into the tensor that the sampler passes to its model. It acts only if that tensor is the
sampler's own x. Two facts show this without reading the device: the sampler's callback shows the same memory, and one
callback lies between two calls that begin a step. Both hold for every sampler of k-diffusion and of the webuis, except
UniPC, which has a gate of its own.
"""

from __future__ import annotations

from torch import Tensor

from lib_demofusion.method.step_gate import StepGate

NOT_ITS_X = "it hands its model a copy of x, so DemoFusion cannot change x; choose another sampler"
CALLS_DO_NOT_FIT = "the calls of its model in a step are not as many as DemoFusion expects; choose another sampler"


class UnknownSampler(ValueError):
    """The sampler's calls do not fit its gate."""


class CallGuard:
    """Compares the tensors that a sampler shows to its model with those that it shows to its callback."""

    def __init__(self, x: Tensor | None = None, rejects_steps: bool = False):
        """`x` is the tensor that the sampling function received, if known."""
        self._given = self._shown = x
        self._evaluated_given: bool | None = None
        self._rejects_steps = rejects_steps
        self._written: Tensor | None = None
        self._begun = False

    def step_begins(self, x: Tensor) -> None:
        """Notes the x of a model call that begins a step.

        DDIM and its like run their callback with the x of the next step, all others with the x of this step. Raises
        UnknownSampler if the callback of the step before did not come.
        """
        if self._written is not None:
            raise UnknownSampler(CALLS_DO_NOT_FIT)
        if self._evaluated_given is None:
            self._evaluated_given = _same_memory(x, self._given)
        self._begun = True
        # references keep the memory from being used for another tensor
        self._written = None if _same_memory(x, self._shown) else x

    def callback(self, x: Tensor) -> None:
        """Notes the x of the sampler's callback.

        IPNDM and DEIS show in every callback the x that they received, which is accepted if they evaluated that very x.
        Raises UnknownSampler if the callback shows another x than the model saw, or if no call has begun a step.
        """
        if not (self._begun or self._rejects_steps):
            raise UnknownSampler(CALLS_DO_NOT_FIT)
        is_known = _same_memory(x, self._written) or (self._evaluated_given and _same_memory(x, self._given))
        if self._written is not None and not is_known:
            raise UnknownSampler(NOT_ITS_X)
        self._shown, self._written, self._begun = x, None, False

    def end(self) -> None:
        """Raises UnknownSampler if the callback of the last step did not come."""
        if self._written is not None:
            raise UnknownSampler(CALLS_DO_NOT_FIT)


def guard_for(gate: StepGate, x: Tensor | None = None) -> CallGuard | None:
    """Returns the guard of a sampling function that received x; None for UniPC, whose gate knows that it copies x."""
    return None if gate.blends_in_callback else CallGuard(x, gate.rejects_steps)


def _same_memory(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and (a is b or a.data_ptr() == b.data_ptr())
