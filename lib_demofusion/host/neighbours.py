"""Features and extensions that DemoFusion cannot run beside. Each gets a sentence that names both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modules import shared

Check = Callable[[Any], bool]


def _other_architecture(p: Any) -> bool:
    model = shared.sd_model
    return getattr(model, "is_sd3", False) or getattr(model, "is_flux", False) or hasattr(model, "create_denoiser")


def _tiled_diffusion(p: Any) -> bool:
    """Tiled Diffusion, and its own DemoFusion, wrap every sampler that is created while they are on."""
    denoiser = getattr(getattr(p, "sampler", None), "model_wrap_cfg", None)
    return hasattr(denoiser, "forward_ori")


REFUSALS: tuple[tuple[Check, str], ...] = (
    (_other_architecture, "SD3 and Flux models: DemoFusion runs on SD1, SD2 and SDXL"),
    (lambda p: bool(p.tiling), "Tiling: seamless edges would be drawn inside every local view"),
    (_tiled_diffusion, "Tiled Diffusion: it samples in tiles already; switch one of the two off"),
)


def refusal(p: Any) -> str | None:
    """Returns why no stage can run with the job's other features, or None."""
    return next((f"DemoFusion does not work with {reason}" for check, reason in REFUSALS if check(p)), None)
