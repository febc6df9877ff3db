"""The control models of Forge's family beside the stages: every batch of views is given its own part of the hints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lib_demofusion.method.hints import StageHint, make_stage_hint, shown_part
from lib_demofusion.method.plan import Plan, StagePlan
from lib_demofusion.method.views import View


class Held:
    """Stands before the linked list of a UNet's control models, which the host asks of the whole latent.

    It says nothing to the host, hands on all else that is asked of the first of them, and asks them of views.
    """

    def __init__(self, first: Any, stage: StagePlan, plan: Plan | None = None):
        self.previous_controlnet = first
        self.transformer_options: dict[str, Any] = {}
        self._hints = {id(control): _hint(control, stage, plan) for control in chain(first)}

    def get_control(self, *args: Any, **kwargs: Any) -> None:
        """Answers the host, for the latent as a whole."""
        return

    def pre_run(self, *args: Any) -> None:
        """The host calls this of every one in the list."""

    def cleanup(self) -> None:
        """The host calls this of every one in the list."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.previous_controlnet, name)

    def add_to(
        self, cond: dict[str, Any], crops: Tensor, levels: Tensor, chunks: Sequence[int], views: Sequence[View]
    ) -> None:
        """Adds to the cond of a batch of views what the control models make of it."""
        options = cond["transformer_options"]
        for control in chain(self.previous_controlnet):
            if hasattr(control, "transformer_options"):
                control.transformer_options = options
            hint = self._hints[id(control)]
            if hint is not None:
                if hasattr(control, "control_input"):
                    # an adapter remembers what it made of its hint
                    control.control_input = None
                control.cond_hint = _rows([hint.for_view(view) for view in views], len(crops), crops, control)
        first = self.previous_controlnet
        # reForge hands the options over, Forge leaves them on the control model
        more = () if hasattr(first, "transformer_options") else (options,)
        cond["control"] = first.get_control(crops, levels, dict(cond), len(chunks), *more)


def chain(first: Any) -> list[Any]:
    """Returns the control models of a linked list."""
    found = []
    while first is not None:
        found.append(first)
        first = first.previous_controlnet
    return found


def _hint(control: Any, stage: StagePlan, plan: Plan | None) -> StageHint | None:
    """Returns a control model's hint at the sizes of a stage, in main memory; None where it has no image."""
    hint = getattr(control, "cond_hint_original", None)
    if not isinstance(hint, Tensor) or hint.ndim != 4:
        return None
    hint = hint.cpu()
    shown = shown_part(hint, plan.crop, plan.base) if plan is not None else hint
    return make_stage_hint(shown, stage.size, stage.factor)


def _rows(parts: list[Tensor], rows: int, crops: Tensor, control: Any) -> Tensor:
    """Returns the parts of all views, view-major and one for each row of the crops, as the control model takes them."""
    each = rows // len(parts)
    if getattr(control, "channels_in", None) == 1:
        parts = [part.mean(1, keepdim=True) for part in parts]
    hint = torch.cat([part.expand(each, -1, -1, -1) if len(part) == 1 else _of_images(part, each) for part in parts])
    dtype = getattr(control, "manual_cast_dtype", None) or getattr(
        getattr(control, "control_model", None), "dtype", None
    )
    return hint.to(device=crops.device, dtype=dtype or crops.dtype)


def _of_images(part: Tensor, rows: int) -> Tensor:
    """Returns the hints of a batch's images for conds and unconds, image by image like their rows."""
    return part.repeat(-(-rows // len(part)), 1, 1, 1)[:rows]
