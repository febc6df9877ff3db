"""Runs the control models of Forge's family on batches of views. Every view gets its own crop of the hints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lib_demofusion.method.control_hints import StageHint, make_stage_hint, shown_part
from lib_demofusion.method.plan import Plan, StagePlan
from lib_demofusion.method.views import View


class ViewControl:
    """Takes the place of the first control model in the UNet's linked list of control models.

    The webui would run all control models of the list on the whole latent. Instead, it calls `get_control` of this
    object, which returns None. For each batch of views, `FusedUnet` calls `add_to`, which runs the control models on
    the batch. If the webui reads an attribute that this class does not define, it gets the attribute of the first
    control model.
    """

    def __init__(self, first: Any, stage: StagePlan, plan: Plan | None = None):
        self.previous_controlnet = first
        self.transformer_options: dict[str, Any] = {}
        self._hints = {id(control): _hint(control, stage, plan) for control in chain(first)}

    def get_control(self, *args: Any, **kwargs: Any) -> None:
        """Returns None, which means that nothing is added to the UNet's feature maps of the whole latent."""
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
        """Runs the control models on a batch of views and sets `cond["control"]` to their output.

        `cond` is the cond of the batch. `crops` (N, C, h, w) are the crops of the latent for all rows of the batch, and
        `levels` (N,) are their noise levels. `chunks` has one mark for each chunk of the batch (see
        `forge_unet.marks_of`).
        """
        options = cond["transformer_options"]
        for control in chain(self.previous_controlnet):
            if hasattr(control, "transformer_options"):
                control.transformer_options = options
            hint = self._hints[id(control)]
            if hint is not None:
                if hasattr(control, "control_input"):
                    # a T2I adapter caches its output for the previous hint in this attribute
                    control.control_input = None
                control.cond_hint = _rows([hint.for_view(view) for view in views], len(crops), crops, control)
        first = self.previous_controlnet
        # get_control has a parameter for the transformer options only in reForge. Other webuis read the attribute
        more = () if hasattr(first, "transformer_options") else (options,)
        cond["control"] = first.get_control(crops, levels, dict(cond), len(chunks), *more)


def chain(first: Any) -> list[Any]:
    """Returns all control models of the linked list that begins with the control model `first`."""
    found = []
    while first is not None:
        found.append(first)
        first = first.previous_controlnet
    return found


def _hint(control: Any, stage: StagePlan, plan: Plan | None) -> StageHint | None:
    """Resizes the hint of a control model for the views of a stage, on the CPU.

    Returns None if the control model has no hint that is an image.
    """
    hint = getattr(control, "cond_hint_original", None)
    if not isinstance(hint, Tensor) or hint.ndim != 4:
        return None
    hint = hint.cpu()
    shown = shown_part(hint, plan.crop, plan.base) if plan is not None else hint
    return make_stage_hint(shown, stage.size, stage.factor)


def _rows(parts: list[Tensor], rows: int, crops: Tensor, control: Any) -> Tensor:
    """Returns the hints (rows, C, h, w) for all rows of a batch. All rows of the first view come first.

    `parts` contains the crop of the hint for each view. `crops` are the crops of the latent. The result is on their
    device.
    """
    each = rows // len(parts)
    if getattr(control, "channels_in", None) == 1:
        # a T2I adapter for gray hints
        parts = [part.mean(1, keepdim=True) for part in parts]
    hint = torch.cat([part.expand(each, -1, -1, -1) if len(part) == 1 else _repeated(part, each) for part in parts])
    dtype = getattr(control, "manual_cast_dtype", None) or getattr(
        getattr(control, "control_model", None), "dtype", None
    )
    return hint.to(device=crops.device, dtype=dtype or crops.dtype)


def _repeated(part: Tensor, rows: int) -> Tensor:
    """Repeats a crop of the hints of several images until it has `rows` rows. `part` has one row for each image.

    The rows of a view consist of chunks, such as the conds of all images and the unconds of all images (see
    `forge_unet.marks_of`). The result therefore contains the crops of all images, and then the same crops again.
    """
    return part.repeat(-(-rows // len(part)), 1, 1, 1)[:rows]
