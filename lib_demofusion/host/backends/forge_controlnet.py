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

    def add_to(self, cond: dict[str, Any], crops: Tensor, levels: Tensor, views: Sequence[View], rows: slice) -> None:
        """Runs the control models on a batch of views and sets `cond["control"]` to their output.

        `cond` is the cond of the batch, with its transformer options (see `forge_unet.options_for`). `crops` (N, C, h,
        w) are the crops of the latent for all rows of the batch, and `levels` (N,) are their noise levels. `rows` are
        the rows of the whole call that the batch contains for each view.
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
                control.cond_hint = _rows([hint.for_view(view) for view in views], rows, crops, control)
        first = self.previous_controlnet
        # get_control has a parameter for the transformer options only in reForge. Other webuis read the attribute
        more = () if hasattr(first, "transformer_options") else (options,)
        chunks = len(options["cond_or_uncond"])
        cond["control"] = first.get_control(crops, levels, dict(cond), chunks, *more)


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


def _rows(parts: list[Tensor], rows: slice, crops: Tensor, control: Any) -> Tensor:
    """Returns the hints (N, C, h, w) for all N rows of a batch. All rows of the first view come first.

    `parts` contains the crop of the hint for each view, and `rows` are the rows of each view in the batch. `crops` are
    the crops of the latent. The result is on their device.
    """
    if getattr(control, "channels_in", None) == 1:
        # a T2I adapter for gray hints
        parts = [part.mean(1, keepdim=True) for part in parts]
    hint = torch.cat([_repeated(part, rows) for part in parts])
    dtype = getattr(control, "manual_cast_dtype", None) or getattr(
        getattr(control, "control_model", None), "dtype", None
    )
    return hint.to(device=crops.device, dtype=dtype or crops.dtype)


def _repeated(part: Tensor, rows: slice) -> Tensor:
    """Returns the crop of the hint for the rows `rows` of a whole call. `part` has one row for each image, or one row.

    The rows of a whole call consist of chunks with one row for each image, in the same order of images (see
    `forge_unet.marks_of`). If memory runs out, a batch contains only some of these rows, so `rows` can begin at any
    image.
    """
    if len(part) == 1:
        return part.expand(rows.stop - rows.start, -1, -1, -1)
    return part[torch.arange(rows.start, rows.stop) % len(part)]
