"""Features and extensions that DemoFusion cannot run beside. Each gets a sentence that names both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modules import shared

from lib_demofusion.host import controlnet

Check = Callable[[Any], bool]


def _other_architecture(p: Any) -> bool:
    model = shared.sd_model
    return getattr(model, "is_sd3", False) or getattr(model, "is_flux", False) or hasattr(model, "create_denoiser")


def _tiled_diffusion(p: Any) -> bool:
    """Tiled Diffusion, and its own DemoFusion, wrap every sampler that is created while they are on."""
    denoiser = getattr(getattr(p, "sampler", None), "model_wrap_cfg", None)
    return hasattr(denoiser, "forward_ori")


def selected_script(p: Any) -> str | None:
    """Returns the title of the script that runs the job, the one chosen in the drop-down list below the panels."""
    index = (p.script_args or [0])[0]
    if not isinstance(index, int) or index < 1 or p.scripts is None:
        return None
    return p.scripts.selectable_scripts[index - 1].title()


def _tile_script(p: Any) -> bool:
    """Upscale and outpainting scripts call the whole pipeline for each of their tiles, and every tile would grow."""
    title = (selected_script(p) or "").lower()
    return "upscale" in title or "outpainting" in title


def _regional_attention(p: Any) -> bool:
    """Regional Prompter's attention mode maps its regions on whatever the model sees, hence on every crop."""
    params = p.extra_generation_params
    return str(params.get("RP Active")) == "True" and params.get("RP Calc Mode") != "Latent"


REFUSALS: tuple[tuple[Check, str], ...] = (
    (_other_architecture, "SD3 and Flux models: DemoFusion runs on SD1, SD2 and SDXL"),
    (lambda p: bool(p.tiling), "Tiling: seamless edges would be drawn inside every local view"),
    (_tile_script, "scripts that upscale or outpaint in tiles: each tile would run every stage"),
    (_regional_attention, "Regional Prompter's attention mode: every local view would show all regions; use Latent"),
    (_tiled_diffusion, "Tiled Diffusion: it samples in tiles already; switch one of the two off"),
)


def refusal(p: Any) -> str | None:
    """Returns why no stage can run with the job's other features, or None."""
    reason = next((reason for check, reason in REFUSALS if check(p)), None) or controlnet.refusal(p)
    return f"DemoFusion does not work with {reason}" if reason else None
