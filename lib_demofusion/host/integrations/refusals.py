"""Refuses features and extensions that do not work with DemoFusion, each with a reason.

A job is checked before its base image is sampled, and again afterwards, because some extensions become active only
during the base pass. Before you press Generate, the panel checks the features that are known on the page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modules import shared
from modules.infotext_utils import create_override_settings_dict

from lib_demofusion.host.backends import host
from lib_demofusion.host.integrations import layer_patches

REFUSED = "DemoFusion does not work with"

REGIONAL = "Regional Prompter"
"""The title of the script of the extension Regional Prompter.

The version for Forge Neo writes nothing to the infotext. `_mode_of_regions` therefore also reads the script.
"""


@dataclass(frozen=True)
class Situation:
    """The features that a job uses, or that the page has selected for the next job."""

    model: Any
    tiling: bool = False
    script: str = ""
    """Title of the script that is selected in the dropdown Script of the tab, or an empty text."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """The infotext entries of the job so far, including the entries of other extensions."""
    regions: str = ""
    """The mode of Regional Prompter, or an empty text if Regional Prompter is off."""
    masked: bool = False
    only_details: bool = False
    """Whether ADetailer's option 'Skip img2img' is active.

    ADetailer then repaints details of the uploaded image and discards the result of img2img.
    """
    denoiser: Any = None
    """The sampler's CFGDenoiser. None until the sampler exists."""


def of_job(p: Any) -> Situation:
    """Returns the features that a job uses."""
    return Situation(
        model=shared.sd_model,
        tiling=bool(p.tiling),
        script=chosen_script(p.scripts, (p.script_args or [0])[0]),
        params=p.extra_generation_params,
        regions=_mode_of_regions(p),
        masked=getattr(p, "mask", None) is not None,
        only_details=getattr(p, "_ad_skip_img2img", False) and not getattr(p, "_ad_disabled", False),
        denoiser=getattr(getattr(p, "sampler", None), "model_wrap_cfg", None),
    )


def of_page(model: Any, script: str, override_settings: Sequence[str] = ()) -> Situation:
    """Returns the features that the page has selected for the next job: the model, tiling and the script.

    `override_settings` are the entries of the field Override settings, such as `Tiling: True`.
    """
    overridden = create_override_settings_dict(list(override_settings))
    return Situation(model, bool(overridden.get("tiling", shared.opts.tiling)), script)


def chosen_script(runner: Any, index: object) -> str:
    """Returns the title of the script at `index` in the dropdown Script, or an empty text for index 0 (None)."""
    scripts: Sequence[Any] = getattr(runner, "selectable_scripts", ())
    if not isinstance(index, int) or not 1 <= index <= len(scripts):
        return ""
    return scripts[index - 1].title()


def _mode_of_regions(p: Any) -> str:
    """Returns the mode of Regional Prompter in this job, or an empty text if Regional Prompter is off."""
    if str(p.extra_generation_params.get("RP Active")) == "True":
        return str(p.extra_generation_params.get("RP Calc Mode"))
    scripts: Sequence[Any] = getattr(p.scripts, "alwayson_scripts", ())
    entry = next((entry for entry in scripts if entry.title() == REGIONAL), None)
    # `active` remains True after a failed job, so the argument of this job is checked too
    if entry is None or not getattr(entry, "active", False) or not p.script_args[entry.args_from]:
        return ""
    return str(getattr(entry, "calc", ""))


Check = Callable[[Situation], bool]


def _tiled_diffusion(now: Situation) -> bool:
    """Returns whether the extension Tiled Diffusion is active. Its own version of DemoFusion also counts.

    This extension replaces functions of every sampler that is created during the job, also of the stages' samplers.
    """
    return "Tiled Diffusion" in now.params


def _tile_script(now: Situation) -> bool:
    """Returns whether a script for upscaling or outpainting is selected.

    Such a script starts one job for each of its tiles, and each of these jobs would run all stages.
    """
    title = now.script.lower()
    return "upscale" in title or "outpainting" in title


def _regional_attention(now: Situation) -> bool:
    """Returns whether Regional Prompter is in attention mode.

    In this mode, every tile would show all regions of the image.
    """
    return now.regions not in ("", "Latent")


def _soft_inpainting(now: Situation) -> bool:
    """Returns whether Soft inpainting runs with DDIM, PLMS or UniPC.

    With these samplers, Soft inpainting would also change the area outside the mask.
    """
    soft = str(now.params.get("Soft inpainting enabled")) == "True" and now.masked
    return soft and getattr(now.denoiser, "mask_before_denoising", False)


def _details_at_base_size(now: Situation) -> bool:
    """Returns whether ADetailer works without its option 'Inpaint only masked'.

    ADetailer then repaints the whole image at the requested size, so the size of the stages would be lost.
    """
    return any(
        key.startswith("ADetailer inpaint only masked") and str(value) == "False" for key, value in now.params.items()
    )


REFUSALS: tuple[tuple[Check, str], ...] = (
    (lambda now: now.tiling, "Tiling: seamless edges would be drawn inside every tile; switch it off"),
    (_tile_script, "scripts that upscale or outpaint in tiles: all stages would run for each tile; set Script to None"),
    (_regional_attention, "Regional Prompter's attention mode: every tile would show all regions; use the mode Latent"),
    (
        lambda now: "SAG Guidance Scale" in now.params,
        "Self Attention Guidance: it would apply the attention of the last tile to the whole image; switch it off",
    ),
    (
        lambda now: str(now.params.get("SCFG Active")) == "True",
        "Semantic CFG of Incantations: it would apply the attention of the last tile to the whole image; switch it off",
    ),
    (
        lambda now: "AnimateDiff" in now.params,
        "AnimateDiff: it would treat tiles as the frames of an animation; switch it off",
    ),
    (
        _soft_inpainting,
        "Soft inpainting with DDIM, PLMS or UniPC: the area outside the mask would change; choose another sampler",
    ),
    (_tiled_diffusion, "Tiled Diffusion: it samples in tiles itself; switch off Tiled Diffusion or DemoFusion"),
    (
        lambda now: now.only_details,
        "ADetailer's 'Skip img2img': the result would be the uploaded image, not the enlarged one; "
        "untick 'Skip img2img'",
    ),
    (
        _details_at_base_size,
        "ADetailer without 'Inpaint only masked': the result would have the size of the base image; "
        "tick 'Inpaint only masked'",
    ),
)


def reason(now: Situation) -> str | None:
    """Returns why a model or feature does not work with DemoFusion, or None.

    The text begins with the name of the model or feature.
    """
    return host().family(now.model).problem or next((reason for check, reason in REFUSALS if check(now)), None)


def refusal(p: Any) -> str | None:
    """Returns the message that refuses a job, or None if all features of the job work with the stages."""
    found = reason(of_job(p)) or layer_patches.refusal(p) or host().refusal(p)
    return None if found is None else f"{REFUSED} {found}"
