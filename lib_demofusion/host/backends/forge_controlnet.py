"""Runs the control models of Forge's family on batches of views, each with its own crop of the hints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lib_demofusion.method.control_hints import StageHint, make_stage_hint, shown_part
from lib_demofusion.method.plan import Plan, StagePlan
from lib_demofusion.method.views import View


class Held:
    """Replaces the first control model in a UNet's linked list.

    The webui runs the control models of the list on the whole latent. This object returns no control for the whole
    latent. Its method `add_to` runs the control models on batches of views instead. Attributes that this class does not
    define come from the first control model.
    """

    def __init__(self, first: Any, stage: StagePlan, plan: Plan | None = None):
        self.previous_controlnet = first
        self.transformer_options: dict[str, Any] = {}
        self._hints = {id(control): _hint(control, stage, plan) for control in chain(first)}

    def get_control(self, *args: Any, **kwargs: Any) -> None:
        """Returns no control for the whole latent."""
        return

    def pre_run(self, *args: Any) -> None:
        """Does nothing. The webui calls this for every control model in the list."""

    def cleanup(self) -> None:
        """Does nothing. The webui calls this for every control model in the list."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.previous_controlnet, name)

    def add_to(
        self, cond: dict[str, Any], crops: Tensor, levels: Tensor, chunks: Sequence[int], views: Sequence[View]
    ) -> None:
        """Adds the output of the control models to the cond of a batch of views.

        `crops` are the rows of the batch, and `levels` (N,) are their noise levels. `chunks` has one mark for each
        chunk of the batch (see `forge_unet.marks_of`).
        """
        options = cond["transformer_options"]
        for control in chain(self.previous_controlnet):
            if hasattr(control, "transformer_options"):
                control.transformer_options = options
            hint = self._hints[id(control)]
            if hint is not None:
                if hasattr(control, "control_input"):
                    # an adapter caches the features of the previous hint
                    control.control_input = None
                control.cond_hint = _rows([hint.for_view(view) for view in views], len(crops), crops, control)
        first = self.previous_controlnet
        # reForge passes the options, Forge stores them on the control model
        more = () if hasattr(first, "transformer_options") else (options,)
        cond["control"] = first.get_control(crops, levels, dict(cond), len(chunks), *more)


def chain(first: Any) -> list[Any]:
    """Lists the control models of a linked list."""
    found = []
    while first is not None:
        found.append(first)
        first = first.previous_controlnet
    return found


def _hint(control: Any, stage: StagePlan, plan: Plan | None) -> StageHint | None:
    """Returns a control model's hint at the sizes of a stage, on the CPU, or None if it has no image."""
    hint = getattr(control, "cond_hint_original", None)
    if not isinstance(hint, Tensor) or hint.ndim != 4:
        return None
    hint = hint.cpu()
    shown = shown_part(hint, plan.crop, plan.base) if plan is not None else hint
    return make_stage_hint(shown, stage.size, stage.factor)


def _rows(parts: list[Tensor], rows: int, crops: Tensor, control: Any) -> Tensor:
    """Joins the crops of all views to one crop per row of the batch. The rows of a view follow each other."""
    each = rows // len(parts)
    if getattr(control, "channels_in", None) == 1:
        parts = [part.mean(1, keepdim=True) for part in parts]
    hint = torch.cat([part.expand(each, -1, -1, -1) if len(part) == 1 else _of_images(part, each) for part in parts])
    dtype = getattr(control, "manual_cast_dtype", None) or getattr(
        getattr(control, "control_model", None), "dtype", None
    )
    return hint.to(device=crops.device, dtype=dtype or crops.dtype)


def _of_images(part: Tensor, rows: int) -> Tensor:
    """Repeats the hints of all images in turn until there are `rows` rows, for the cond and then for the uncond."""
    return part.repeat(-(-rows // len(part)), 1, 1, 1)[:rows]
