"""How many steps and model calls the webui's own samplers and passes make."""

from __future__ import annotations

from typing import Any

from modules import sd_samplers


def calls_twice(sampler: str | None) -> bool:
    """Returns whether a sampler calls its model twice a step."""
    config = sd_samplers.find_sampler_config(sampler)
    return config is not None and bool(config.options.get("second_order", False))


def img2img_steps(steps: int, strength: float) -> int:
    """Returns how many steps the webui's img2img runs (modules/sd_samplers_common.py, setup_img2img_steps)."""
    return int(min(strength, 0.999) * steps) + 1


def calls_of_base(p: Any) -> int:
    """Returns how often the sampler of the webui's last pass called its model, 0 where that is not known."""
    return getattr(getattr(p.sampler, "model_wrap_cfg", None), "step", 0)
