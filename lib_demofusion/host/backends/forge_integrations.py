"""Refuses built-in features of Forge's family that do not work with the stages, each with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lib_demofusion.host.backends.families import SD, Family
from lib_demofusion.host.backends.forge_transformers import of_transformer
from lib_demofusion.host.backends.inner_wrapper import keeps_history

WRAPPER = "model_function_wrapper"
"""The option of a patched UNet for a function that wraps the model call (backend/patcher/base.py)."""

BY_KEY = {
    "multidiffusion_enabled": "MultiDiffusion Integrated: it samples in tiles already; switch one of the two off",
    "sag_enabled": "SelfAttentionGuidance Integrated: it takes the last view's attention for that of the whole image",
    "spec_w": "Spectrum Integrated: it predicts a view from the steps of other views; switch it off",
    "forge_couple": "Forge Couple: every tile would show all of its regions",
    "stylealign_enabled": "StyleAlign Integrated: the views of a batch would take one another's style",
}
"""Reasons by the infotext key that an active feature writes."""

BY_FLOW = ("SD3", "Aura Flow", "Flux")
"""Modes of reForge's Advanced Model Sampling that mix latent and noise. They do not suit the skip residual."""

FLOW = "Advanced Model Sampling in the mode %s: DemoFusion runs on models that are not sampled by flow matching"

PID = "PiD Integrated"
"""Forge Neo's script that upscales with a trained decoder. It writes nothing to the infotext of the job."""

PID_REASON = f"{PID}: it makes the base image anew, four times as large; switch one of the two off"

WHOLE_PICTURE = ("ControlNetPatcher", "IPAdapterPatcher", "PhotomakerPatcher")
"""Supported kinds of control models. Their hint is cropped to the views or describes the whole image."""


def refusal(p: Any, family: Family = SD) -> str | None:
    """Returns the built-in feature that does not work with the stages of a job, and why, or None."""
    mode = p.extra_generation_params.get("advanced_sampling_mode")
    if mode in BY_FLOW:
        return FLOW % mode
    for key, reason in BY_KEY.items():
        if str(p.extra_generation_params.get(key, False)) not in ("False", "None"):
            return reason
    if getattr(p, "refiner_checkpoint_info", None) is not None:
        return "the refiner: this webui keeps it loaded, and the stages need the checkpoint of the base image"
    if _decodes_anew(p):
        return PID_REASON
    return _of_units(p) if not family.transformer else of_transformer(p, family)


def _decodes_anew(p: Any) -> bool:
    """Returns whether PiD will run. With hires fix it disables itself."""
    entry = next((entry for entry in _alwayson(p) if entry.title() == PID), None)
    return entry is not None and bool(p.script_args[entry.args_from]) and not getattr(p, "enable_hr", False)


def _alwayson(p: Any) -> Sequence[Any]:
    return getattr(p.scripts, "alwayson_scripts", None) or ()


def _of_units(p: Any) -> str | None:
    for entry in _alwayson(p):
        if entry.title().lower() == "controlnet":
            units = getattr(entry, "current_params", None) or {}
            found = ((number + 1, _problem(unit)) for number, unit in units.items())
            return next((f"ControlNet unit {number}: {problem}" for number, problem in found if problem), None)
    return None


def _problem(unit: Any) -> str | None:
    """Returns why the hint of a unit of the built-in ControlNet cannot be cropped to views, or None."""
    preprocessor = str(getattr(unit.preprocessor, "name", ""))
    model = type(unit.model).__name__
    if "inpaint_only" in preprocessor:
        return "it pastes the base image's pixels; use inpaint_global_harmonious"
    if preprocessor.startswith("reference"):
        return "reference compares with an image of the latent's size; use IP-Adapter"
    if model not in WHOLE_PICTURE and unit.model is not None and model != "ControlModelPatcher":
        return f"nothing is known of how the hint of a {model.removesuffix('Patcher')} would be cut"
    if getattr(unit, "control_mask", None) is not None:
        return "its mask is that of the whole image; remove it"
    return None


def check_patches(unet: Any, family: Family = SD) -> None:
    """Raises RuntimeError if an extension's patch needs the whole latent, or computes a view from other views."""
    inner = unet.model_options.get(WRAPPER)
    # on transformers, nearly all such wrappers cache steps
    if inner is not None and (family.transformer or keeps_history(inner)):
        module = getattr(inner, "__module__", None) or type(inner).__module__
        raise RuntimeError(f"{module} computes a step from the steps before, which would be other views; switch it off")
    modifiers = unet.model_options.get("conditioning_modifiers")
    if modifiers:
        names = ", ".join(sorted({getattr(m, "__module__", "?") for m in modifiers}))
        raise RuntimeError(f"{names} changes what the model is asked of the whole latent; switch it off")
