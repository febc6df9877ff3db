"""How many steps and model calls the webui's own samplers and passes make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modules import sd_samplers

from lib_demofusion.host.progress import timing
from lib_demofusion.method.model_calls import ADAPTIVE_CALLS, CallsAhead, calls_ahead, calls_of_whole, model_calls


def calls_twice(sampler: str | None) -> bool:
    """Returns whether a sampler calls its model twice a step."""
    config = sd_samplers.find_sampler_config(sampler)
    return config is not None and bool(config.options.get("second_order", False))


def img2img_steps(steps: int, strength: float) -> int:
    """Returns how many steps the webui's img2img runs (modules/sd_samplers_common.py, setup_img2img_steps)."""
    return int(min(strength, 0.999) * steps) + 1


class CallsOfStage:
    """How often a stage's sampling function calls its model, from the function's arguments.

    DPM adaptive goes by the image. It is taken to be as busy as in the base pass, or as much more so as it was in the
    last stage that this checkpoint ran with it: on a trained model it called 57 times in the base pass, and 126 times
    in a stage whose dilated views and skip residual made its steps short.
    """

    def __init__(self, p: Any, name: str, arguments: Mapping[str, Any], second_order: bool):
        self._model, self._arguments = p.sd_model, arguments
        self._is_told = model_calls(name, arguments, second_order) is not None
        self._of_base = _calls_of_base(p) or ADAPTIVE_CALLS
        busier = 1.0 if self._is_told else timing.known(self._model, timing.BUSIER) or 1.0
        self.ahead: CallsAhead = calls_ahead(name, arguments, second_order, busier * self._of_base)

    def learn(self, calls: int) -> None:
        """Takes note of a stage that has ended after so many calls."""
        if not self._is_told and "sigma_max" in self._arguments:
            timing.learn(self._model, timing.BUSIER, calls_of_whole(calls, self._arguments) / self._of_base)


def _calls_of_base(p: Any) -> int:
    """Returns how often the sampler of the webui's last pass called its model, 0 where that is not known."""
    return getattr(getattr(p.sampler, "model_wrap_cfg", None), "step", 0)
