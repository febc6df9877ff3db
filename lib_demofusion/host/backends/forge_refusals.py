"""Refuses features and samplers of Forge's family that do not work with the stages, each with a reason."""

from __future__ import annotations

import inspect
from typing import Any

from modules import sd_samplers, shared

from lib_demofusion.host.backends.families import SD, Family
from lib_demofusion.host.common.history import STEP_CACHE, keeps_history
from lib_demofusion.method.sampler_checks import flow_problem, knows_flow
from lib_demofusion.method.sampler_steps import function_name, is_stochastic

try:
    from backend.args import dynamic_args as dynamic_args
except ImportError:
    dynamic_args = None

WRAPPER = "model_function_wrapper"
"""The name of the option in which a patched UNet stores a wrapper of the model call (backend/patcher/base.py)."""

BY_KEY = {
    "multidiffusion_enabled": "MultiDiffusion Integrated: it samples in tiles itself; switch MultiDiffusion off",
    "sag_enabled": "SelfAttentionGuidance Integrated: every tile would use the attention of one tile; switch it off",
    "spec_w": "Spectrum Integrated: it would predict a tile from the steps of other tiles; switch it off",
    "forge_couple": "Forge Couple: every tile would show all of its regions; switch it off",
    "stylealign_enabled": "StyleAlign Integrated: the tiles of a batch would adopt each other's style; switch it off",
    # when Anima TeaCache is off, the function with which it replaced the forward of the model still remains. Only the
    # infotext key shows whether Anima TeaCache is on
    "Anima TeaCache thresh": STEP_CACHE % "Anima TeaCache",
}
"""Maps an infotext key to the reason why the feature or extension that writes the key is refused.

If the feature is not active, the infotext does not contain the key, or its value is False or None.
"""

FLOW_MODES = ("SD3", "Aura Flow", "Flux")
"""Modes of reForge's Advanced Model Sampling that sample by flow matching.

They are refused because this extension does not detect flow matching in reForge (see `Forge.family`).
"""

FLOW = "Advanced Model Sampling in the mode %s: flow matching is not supported in this webui; choose another mode"

PID = "PiD Integrated"
"""Title of Forge Neo's script that upscales with a trained decoder. The script writes no infotext key for the job."""

PID_REASON = f"{PID}: it also enlarges the base image, to four times its size; switch PiD or DemoFusion off"

SUPPORTED_MODELS = ("ControlNetPatcher", "IPAdapterPatcher", "PhotomakerPatcher", "ControlModelPatcher")
"""Classes of control models that the stages support.

The stages crop the hint of a ControlNetPatcher to the views. IPAdapterPatcher and PhotomakerPatcher use the whole image
for every view. ControlModelPatcher is for preprocessors that need no control model.
"""


def refusal(p: Any, family: Family = SD) -> str | None:
    """Returns why a feature, an extension or a ControlNet unit of a job does not work with the stages, or None.

    The text begins with the name of the feature.
    """
    mode = p.extra_generation_params.get("advanced_sampling_mode")
    if mode in FLOW_MODES:
        return FLOW % mode
    for key, reason in BY_KEY.items():
        if str(p.extra_generation_params.get(key, False)) not in ("False", "None"):
            return reason
    if getattr(p, "refiner_checkpoint_info", None) is not None:
        return "the refiner: this webui cannot load the checkpoint of the base image again; switch the refiner off"
    hires = getattr(p, "hr_checkpoint_info", None)
    if hires is not None and hires.name_for_extra != p.sd_model_name:
        return (
            f"the hires checkpoint {hires.name_for_extra}: this webui cannot load the main checkpoint again; "
            "choose 'Use same checkpoint'"
        )
    if _pid_runs(p):
        return PID_REASON
    return _of_units(p) if not family.transformer else of_transformer(p, family)


def _pid_runs(p: Any) -> bool:
    """Returns whether the script PiD Integrated will run. It does not run in a job with hires fix."""
    entry = _entry(p, PID)
    return entry is not None and bool(p.script_args[entry.args_from]) and not getattr(p, "enable_hr", False)


def _entry(p: Any, title: str) -> Any:
    """Returns the always visible script of the job with this title, or None. Ignores upper and lower case."""
    entries = getattr(p.scripts, "alwayson_scripts", None) or ()
    return next((entry for entry in entries if entry.title().lower() == title.lower()), None)


def _controlnet_units(p: Any) -> dict[int, Any]:
    """Returns the active units of the built-in ControlNet. The keys are the numbers of the units, from 0."""
    return getattr(_entry(p, "ControlNet"), "current_params", None) or {}


def _of_units(p: Any) -> str | None:
    found = ((number + 1, _unit_problem(unit)) for number, unit in _controlnet_units(p).items())
    return next((f"ControlNet unit {number}: {problem}" for number, problem in found if problem), None)


def _unit_problem(unit: Any) -> str | None:
    """Returns why a unit of the built-in ControlNet does not work with views, or None."""
    preprocessor = str(getattr(unit.preprocessor, "name", ""))
    model = type(unit.model).__name__
    if "inpaint_only" in preprocessor:
        return "inpaint_only pastes an image of the base image's size into every step; use inpaint_global_harmonious"
    if preprocessor.startswith("reference"):
        return f"{preprocessor} needs the whole latent and does not work on tiles; use an IP-Adapter"
    if unit.model is not None and model not in SUPPORTED_MODELS:
        return f"DemoFusion cannot crop the hint of a {model.removesuffix('Patcher')} to tiles; switch the unit off"
    if getattr(unit, "control_mask", None) is not None:
        return "its mask cannot be cropped to tiles; remove the mask"
    return None


def patch_problem(unet: Any, family: Family = SD) -> str | None:
    """Returns why another extension's patch of `unet` does not work with views, or None.

    A patch does not work if it needs the whole latent, or if it keeps data from one model call to the next. The text
    begins with the name of the module that contains the patch.
    """
    inner = unet.model_options.get(WRAPPER)
    # a wrapper of a transformer is always refused, because nearly all of them are step caches
    if inner is not None and (family.transformer or keeps_history(inner)):
        return STEP_CACHE % _author(inner)
    modifiers = unet.model_options.get("conditioning_modifiers")
    if modifiers:
        names = ", ".join(sorted(set(map(_author, modifiers))))
        return f"{names}: it changes the prompt's conditioning for the whole latent, not for each tile; switch it off"
    return None


def _author(function: Any) -> str:
    """Returns the name of the module that defines a function. For another object, returns the module of its class.

    Removes ".py", with which the module names of the webui's scripts end.
    """
    module = getattr(function, "__module__", None) or type(function).__module__
    return str(module).removesuffix(".py")


REFERENCES = "reference images of %s: every tile would show the whole reference%s"
CONTROL = "ControlNet on %s: DemoFusion cannot crop hints to the tiles for this model; switch all ControlNet units off"
MASK = "inpainting with %s: the webui's masks do not have the shape of this model's latents; remove the mask"
CACHE = "Nunchaku's Cache Threshold above 0: it would treat a tile as a repetition of the previous tile; set it to 0"


def of_transformer(p: Any, family: Family) -> str | None:
    """Returns why a feature of the job does not work with the stages on a transformer, or None.

    The text begins with the name of the feature.
    """
    if has_references(p):
        return REFERENCES % (family.name, family.reference_hint)
    if float(getattr(shared.opts, "svdq_cache_threshold", 0.0)) > 0 and getattr(dynamic_args, "nunchaku", False):
        return CACHE
    if getattr(p, "mask", None) is not None and family.has_other_shape:
        return MASK % family.name
    return CONTROL % family.name if _controlnet_units(p) else None


def has_references(p: Any) -> bool:
    """Returns whether the model uses reference images in addition to the prompt in this job.

    Before the job's sampler exists, the function returns False, because the webui can still store reference images of
    the previous job. When most models encode the prompt, the webui removes these images. Anima keeps and uses them.
    """
    return getattr(p, "sampler", None) is not None and bool(getattr(dynamic_args, "ref_latents", None))


FOR_FLOW = "the sampler %s: it is for flow models only, and the checkpoint is not a flow model; choose another sampler"


def sampler_problem(p: Any, flow: bool) -> str | None:
    """Returns why the stages cannot use the sampler of the job, or None.

    `flow` says whether the model was trained for flow matching.
    """
    label = p.sampler_name
    if sd_samplers.find_sampler_config(label) is None:
        return None
    sampler = sd_samplers.create_sampler(label, p.sd_model)
    name = function_name(sampler.func)
    if not flow:
        return FOR_FLOW % label if name.endswith("_RF") else None
    parameters = inspect.signature(sampler.func).parameters
    churn = float(getattr(shared.opts, "s_churn", 0.0)) if "s_churn" in parameters else 0.0
    draws = is_stochastic(name, _eta(p, sampler) if "eta" in parameters else None, churn, "noise_sampler" in parameters)
    knows = knows_flow(sampler.func, p.sd_model.forge_objects.unet.model.predictor)
    return flow_problem(label, name, draws, knows, churn)


def _eta(p: Any, sampler: Any) -> float:
    """Returns the eta that the webui passes to the sampler (modules/sd_samplers_common.py, initialize)."""
    return float(p.eta if p.eta is not None else getattr(shared.opts, sampler.eta_option_field, 0.0))
