"""Counts the steps and model calls of the webui's own samplers and passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modules import sd_samplers

from lib_demofusion.host.progress import timing
from lib_demofusion.method.costs import ADAPTIVE_CALLS, CallsAhead, calls_ahead, calls_of_whole, model_calls


def calls_twice(sampler: str | None) -> bool:
    """Returns whether a sampler calls its model twice per step."""
    config = sd_samplers.find_sampler_config(sampler)
    return config is not None and bool(config.options.get("second_order", False))


def img2img_steps(steps: int, strength: float) -> int:
    """Returns how many steps the webui's img2img runs (modules/sd_samplers_common.py, setup_img2img_steps)."""
    return int(min(strength, 0.999) * steps) + 1


class CallsOfStage:
    """Predicts the number of model calls of a stage's sampling function from the function's arguments.

    For DPM adaptive, the number depends on the image. The estimate is the number of calls in the base pass times the
    ratio that was measured in this checkpoint's last stage with DPM adaptive (1 before that). In a test with a trained
    model, there were 57 calls in the base pass and 126 in a stage, where dilated views and skip residual shorten the
    steps.
    """

    def __init__(self, p: Any, name: str, arguments: Mapping[str, Any], second_order: bool):
        self._model, self._arguments = p.sd_model, arguments
        self._is_told = model_calls(name, arguments, second_order) is not None
        self._of_base = _calls_of_base(p) or ADAPTIVE_CALLS
        busier = 1.0 if self._is_told else timing.known(self._model, timing.BUSIER) or 1.0
        self.ahead: CallsAhead = calls_ahead(name, arguments, second_order, busier * self._of_base)

    def learn(self, calls: int) -> None:
        """Updates the measured ratio after a stage with `calls` model calls."""
        if not self._is_told and "sigma_max" in self._arguments:
            timing.learn(self._model, timing.BUSIER, calls_of_whole(calls, self._arguments) / self._of_base)


def _calls_of_base(p: Any) -> int:
    """Returns the number of model calls in the webui's last pass, or 0 if it is not known."""
    return getattr(getattr(p.sampler, "model_wrap_cfg", None), "step", 0)
