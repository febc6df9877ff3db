"""Runs the ControlNet extension in the stages. Every view gets its own crop of the hints.

During a job, ControlNet replaces the forward of the UNet and adds the output of its control models to the UNet's
feature maps. Each ControlNet unit is an object that stores its hint, the control image, at the size of the base image
(scripts/hook.py of ControlNet). This file replaces the hints by crops during each model call.

ControlNet reads the number of the current step from the webui. The number of model calls per step therefore does not
affect at which steps a unit is active.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_demofusion.host.common import replaced
from lib_demofusion.host.common.messages import report_note
from lib_demofusion.method.control_hints import StageHint, make_stage_hint, resize_hint, shown_part
from lib_demofusion.method.plan import Plan, StagePlan
from lib_demofusion.method.views import Size, View

logger = logging.getLogger("DemoFusion")

CROPPED_KINDS = ("ControlNet", "ControlLoRA", "ControlNetUnion", "InstantID", "T2I_Adapter", "Controlllite")
"""Kinds of ControlNet units whose hint is an image of the same area as the latent. It is cropped to the views."""

WHOLE_KINDS = ("IPAdapter", "ReVision", "T2I_StyleAdapter", "AttentionInjection")
"""Kinds of ControlNet units whose hint has no position in the image. Every view uses the whole hint."""

INPAINTING_CHANNELS = 9
"""Number of input channels of an inpainting checkpoint's UNet."""


def extension_script(p: Any) -> Any:
    """Returns the script of the ControlNet extension if it is active in this job, else None."""
    for entry in getattr(getattr(p, "scripts", None), "alwayson_scripts", None) or ():
        if getattr(entry, "latest_network", None) is not None and entry.title().lower() == "controlnet":
            return entry
    return None


def units(p: Any) -> list[Any]:
    """Returns the ControlNet units that are active in this job."""
    return list(getattr(getattr(extension_script(p), "latest_network", None), "control_params", None) or ())


def kind(unit: Any) -> str:
    """Returns the kind of a ControlNet unit's model, such as "T2I_Adapter"."""
    return getattr(unit.control_model_type, "name", str(unit.control_model_type))


def refusal(p: Any) -> str | None:
    """Returns why a ControlNet unit or an option of ControlNet does not work with views, or None.

    The text begins with the name of the unit or option.
    """
    found = extension_script(p)
    if found is None:
        return None
    if getattr(getattr(found.latest_network, "attention_auto_machine", None), "name", "") == "StyleAlign":
        return "ControlNet's style alignment: the tiles of a batch would adopt each other's style; switch it off"
    active = units(p)
    if len(active) > 1 and str(getattr(found, "ui_batch_option_state", [""])[0]).startswith("Each"):
        option = "'Each ControlNet unit for each image in a batch'"
        return f"ControlNet's {option}: tiles would count as images of a batch; choose another batch option"
    for number, unit in enumerate(active, 1):
        problem = _problem(p, unit)
        if problem:
            return f"ControlNet unit {number} ({_preprocessor(unit)}, {kind(unit)}): {problem}"
    return None


def _preprocessor(unit: Any) -> str:
    return str((unit.preprocessor or {}).get("name", "none"))


def _problem(p: Any, unit: Any) -> str | None:
    if kind(unit) in WHOLE_KINDS:
        masked = kind(unit) == "IPAdapter" and unit.effective_region_mask is not None
        return "its mask would be applied to every tile; remove the mask" if masked else None
    if kind(unit) not in CROPPED_KINDS:
        return "DemoFusion cannot crop its hint to tiles; switch the unit off"
    network = getattr(unit.control_model, "control_model", None)
    if type(network).__name__ == "SparseCtrl" or not isinstance(_base_hint(unit), Tensor) or len(_base_hint(unit)) != 1:
        return "it has a hint for each frame of an animation; use a single image"
    if "inpaint_only" in _preprocessor(unit):
        return "inpaint_only pastes a latent of the base image's size into every step; use inpaint_global_harmonious"
    if _base_hint(unit).shape[1] > 3 and _unet(p).in_channels == INPAINTING_CHANNELS:
        return "DemoFusion cannot crop a hint with a mask for an inpainting checkpoint; choose another checkpoint"
    if kind(unit) == "T2I_Adapter" and unit.cfg_injection:
        return "'ControlNet is more important' gives an adapter one hint for all tiles; use another control mode"
    return None


def _unet(p: Any) -> Any:
    return p.sd_model.model.diffusion_model


def _base_hint(unit: Any) -> Any:
    """Returns the hint at the size of the base image: after hires fix `hr_hint_cond`, otherwise `hint_cond`."""
    return unit.hr_hint_cond if isinstance(unit.hr_hint_cond, Tensor) else unit.hint_cond


def mark_prompts(p: Any) -> None:
    """Marks the conds and unconds of newly encoded prompts with ControlNet's own function.

    ControlNet uses these marks to distinguish the conds from the unconds.
    """
    network = getattr(extension_script(p), "latest_network", None)
    mark = getattr(sys.modules.get(type(network).__module__), "mark_prompt_context", None)
    if mark is not None:
        mark(p.c, positive=True)
        mark(p.uc, positive=False)


class Hints:
    """The hints of all ControlNet units during one stage."""

    def __init__(self, units: Sequence[_Unit] = ()):
        self._units = units

    @contextmanager
    def for_views(self, views: Sequence[View], rows: int) -> Iterator[None]:
        """Sets the hints of the units to the crops for a batch of views during the block.

        The model call in the block has `rows` rows for each view. Without units, the function does nothing.
        """
        with ExitStack() as stack:
            for unit in self._units:
                unit.enter(stack, views, rows)
            yield


def stage_hints(p: Any, stage: StagePlan, plan: Plan | None = None) -> Hints:
    """Resizes the hints of the job's ControlNet units whose kind is in CROPPED_KINDS to the size of a stage.

    If `plan` is given, the hints are first cropped to the part of the base image that the plan enlarges. The hints stay
    in the computer's memory. Only the crops for a batch of views are copied to the device. If ControlNet is attached to
    the refiner, the result contains no units, and the user gets a note.
    """
    found = extension_script(p)
    if found is None:
        return Hints()
    if found.latest_network.model is not _unet(p):
        report_note(
            p,
            "ControlNet has no effect in the stages, because it is attached to the refiner, not to the base model",
        )
        return Hints()
    made = []
    for index, unit in enumerate(units(p)):
        latent = _latent(p, found.latest_network, unit)
        if kind(unit) in CROPPED_KINDS:
            made.append(_cropped_unit(unit, stage, plan, latent, _Resize(found, index, _preprocessor(unit))))
        elif latent is not None:
            made.append(_Unit(unit, latent=latent))
    return Hints(made)


def _cropped_unit(unit: Any, stage: StagePlan, plan: Plan | None, latent: Tensor | None, resize: _Resize) -> _Unit:
    def shown(value: Tensor) -> Tensor:
        return shown_part(value, plan.crop, plan.base) if plan is not None else value

    hint = make_stage_hint(shown(_base_hint(unit)).cpu(), stage.size, stage.factor, resize)
    region = unit.effective_region_mask
    if region is not None:
        region = make_stage_hint(shown(region).cpu(), stage.size, stage.factor)
    if latent is not None:
        latent = F.interpolate(shown(latent).float(), stage.size, mode="bicubic", align_corners=False).to(latent.dtype)
    return _Unit(unit, hint, region, latent)


def _latent(p: Any, network: Any, unit: Any) -> Tensor | None:
    """Encodes the hint of a unit to a latent (1, C, h, w) with ControlNet's own function.

    Returns None for units that need no latent.
    """
    if kind(unit) == "AttentionInjection" or "colorfix" in _preprocessor(unit):
        return network.call_vae_using_process(p, _base_hint(unit))[:1]
    return None


class _Resize:
    """Resizes hints with ControlNet's own function `detectmap_proc`, which keeps lines thin.

    Uses `resize_hint` if `detectmap_proc` fails or changes the number of channels.
    """

    def __init__(self, found: Any, index: int, preprocessor: str):
        self._found, self._index, self._preprocessor = found, index, preprocessor

    def __call__(self, hint: Tensor, size: Size) -> Tensor:
        if tuple(hint.shape[-2:]) == size:
            return hint
        try:
            mode = type(self._found.enabled_units[self._index].resize_mode).RESIZE
            pixels = (hint[0].permute(1, 2, 0) * 255).round().clamp(0, 255).byte().numpy()
            resized, _ = self._found.detectmap_proc(pixels, self._preprocessor, mode, *size)
        except Exception as problem:
            # `detectmap_proc` is not documented, so it can differ in other versions of ControlNet
            logger.warning("ControlNet could not resize a hint, so DemoFusion resizes it: %s", problem)
            return resize_hint(hint, size)
        return resized.to(hint) if resized.shape[1] == hint.shape[1] else resize_hint(hint, size)


@dataclass(frozen=True)
class _Unit:
    """A ControlNet unit in one stage."""

    unit: Any
    hint: StageHint | None = None
    """The hint at the size of the stage, or None if every view uses the whole hint."""
    region: StageHint | None = None
    """The mask of the unit at the size of the stage, or None if the unit has no mask."""
    latent: Tensor | None = None
    """The latent (1, C, H, W) of the hint, or None if the unit needs no latent.

    If `hint` is set, the latent has the size of the stage and is cropped to the views. Otherwise, every view uses the
    whole latent.
    """

    def enter(self, stack: ExitStack, views: Sequence[View], rows: int) -> None:
        """Sets the hint of the unit to the crops for a batch of views, with `rows` rows for each view.

        When `stack` closes, the unit gets its own hint back.
        """
        values = self._values(views, rows)
        if kind(self.unit) == "T2I_Adapter":
            # a T2I adapter caches its output for the previous hint until `reset`
            stack.callback(self.unit.control_model.reset)
            self.unit.control_model.reset()
        if kind(self.unit) == "Controlllite":
            for module in self.unit.control_model.modules.values():
                stack.enter_context(replaced(module, cond_image=values["hint_cond"] * 2 - 1, cond_emb=None))
        stack.enter_context(replaced(self.unit, **values))

    def _values(self, views: Sequence[View], rows: int) -> dict[str, Any]:
        """Returns the values of the unit's attributes for these views.

        `hint_cond` comes first, because the unit clears the attributes that begin with `used_` when `hint_cond` is set.
        After hires fix, ControlNet reads `hr_hint_cond`, so this attribute gets the same crops.
        """
        unit, native = self.unit, _base_hint(self.unit)
        hint = native if self.hint is None else _rows([self.hint.for_view(view) for view in views], rows).to(native)
        values = {"hint_cond": hint, "hr_hint_cond": hint if native is unit.hr_hint_cond else unit.hr_hint_cond}
        values |= {"used_hint_cond": hint, "used_hint_inpaint_hijack": None}
        values["used_hint_cond_latent"] = self._latent(views, rows)
        if self.region is not None:
            region = _rows([self.region.for_view(view) for view in views], rows)
            values["effective_region_mask"] = region.to(unit.effective_region_mask)
        return values

    def _latent(self, views: Sequence[View], rows: int) -> Tensor | None:
        if self.latent is None:
            return None
        if self.hint is None:
            return self.latent.expand(len(views) * rows, -1, -1, -1)
        return torch.cat([view.take(self.latent).expand(rows, -1, -1, -1) for view in views])


def _rows(parts: list[Tensor], rows: int) -> Tensor:
    """Joins the crops of all views to a batch with `rows` rows for each view. All rows of the first view come first.

    The crop of a single view is not repeated, because ControlNet applies a hint with one row to all rows.
    """
    return torch.cat(parts).repeat_interleave(rows, dim=0) if len(parts) > 1 else parts[0]
