"""Imitates the ControlNet extension: its units with their hints, its models, its hook of the UNet and its script.

A hint is the image that guides a unit. A control is the tensor that ControlNet computes from a hint and adds to
features of the UNet.
"""

from __future__ import annotations

from enum import Enum
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CELL = 8
Kind = Enum(
    "Kind",
    "ControlNet ControlLoRA ControlNetUnion InstantID T2I_Adapter T2I_StyleAdapter ReVision IPAdapter Controlllite "
    "AttentionInjection SparseCtrl StableSR",
)
Mode = Enum("Mode", "RESIZE INNER_FIT OUTER_FIT")


class Unit:
    """Imitates ControlParams (scripts/hook.py), the data of one ControlNet unit.

    Setting `hint_cond` to a new hint deletes the data that was computed from the previous hint.
    """

    def __init__(self, hint: Any, kind: str = "ControlNet", preprocessor: str = "none", **values: Any):
        self._hint_cond = hint
        self.control_model_type = Kind[kind]
        self.preprocessor = {"name": preprocessor}
        self.hr_hint_cond = None
        self.used_hint_cond = self.used_hint_cond_latent = self.used_hint_inpaint_hijack = None
        self.effective_region_mask = None
        self.cfg_injection = False
        self.control_model: Any = SimpleNamespace(control_model=None)
        vars(self).update(values)

    @property
    def hint_cond(self) -> Any:
        return self._hint_cond

    @hint_cond.setter
    def hint_cond(self, hint: Any) -> None:
        self._hint_cond = hint
        self.used_hint_cond = self.used_hint_cond_latent = self.used_hint_inpaint_hijack = None


class Adapter:
    """Imitates a T2I adapter, which returns the control of the first hint again until `reset` is called."""

    def __init__(self) -> None:
        self.control_model = None
        self.control: Tensor | None = None

    def reset(self) -> None:
        self.control = None

    def __call__(self, hint: Tensor) -> Tensor:
        if self.control is None:
            self.control = control_of(hint)
        return self.control


class Lite:
    """Imitates ControlNet-LLLite, which adds layers to the UNet.

    The layers store the hint, scaled to -1..1, and the control that they compute from it.
    """

    def __init__(self, hint: Tensor) -> None:
        layer = SimpleNamespace(cond_image=hint * 2 - 1, cond_emb=None)
        self.modules = {"layer": layer}

    def __call__(self) -> Tensor:
        layer = self.modules["layer"]
        if layer.cond_emb is None:
            layer.cond_emb = control_of((layer.cond_image + 1) / 2)
        return layer.cond_emb


def control_of(hint: Tensor) -> Tensor:
    """Returns a control (N, 4, h, w) with four equal channels.

    Each value is the mean of the first three channels of the hint (N, C, 8 h, 8 w) over the 8x8 pixels of a cell.
    """
    return F.avg_pool2d(hint[:, :3].mean(1, keepdim=True), CELL).expand(-1, 4, -1, -1)


class Network:
    """Imitates UnetHook (scripts/hook.py), which adds the controls of all units of a job to the UNet.

    `seen` contains the shapes of all controls and masks that were used.
    """

    def __init__(self, units: list[Unit], unet: Any = None):
        self.control_params = units
        self.model = unet
        self.attention_auto_machine = SimpleNamespace(name="Read")
        self.seen: list[tuple[int, ...]] = []

    def call_vae_using_process(self, p: Any, hint: Tensor) -> Tensor:
        return control_of(hint)

    def control(self, x: Tensor) -> Tensor:
        """Returns the sum of the controls of all units for x (N, 4, h, w).

        Raises AssertionError if a control does not have the size of x, or if a mask is not 8 times as large as x. Also
        raises it if the number of images in a control or mask is neither 1 nor N, or if a hint should be encoded by the
        VAE but is not. If a hint is encoded, its control must contain N images.
        """
        total = torch.zeros_like(x)
        for unit in self.control_params:
            if unit.used_hint_cond is None:
                unit.used_hint_cond, unit.used_hint_cond_latent = unit.hint_cond, None
            if unit.hr_hint_cond is not None:
                sizes = [abs(x.shape[2] * CELL - hint.shape[2]) for hint in (unit.hint_cond, unit.hr_hint_cond)]
                used = unit.hint_cond if sizes[0] < sizes[1] else unit.hr_hint_cond
                if unit.used_hint_cond is not used:
                    unit.used_hint_cond, unit.used_hint_cond_latent = used, None
            total = total + self._of(unit, x)
        return total

    def _of(self, unit: Unit, x: Tensor) -> Tensor:
        name, hint = unit.control_model_type.name, unit.used_hint_cond
        if name == "AttentionInjection" or "colorfix" in unit.preprocessor["name"]:
            if unit.used_hint_cond_latent is None:
                raise AssertionError("the hint is not encoded, so ControlNet would encode it for every batch of views")
            return self._fitting(unit.used_hint_cond_latent, x, len(x))
        if name == "T2I_Adapter":
            return self._fitting(unit.control_model(hint), x)
        if name == "Controlllite":
            return self._fitting(unit.control_model(), x)
        if name in ("IPAdapter", "ReVision", "T2I_StyleAdapter"):
            return torch.zeros_like(x)
        control = self._fitting(control_of(hint), x)
        region = unit.effective_region_mask
        if region is None:
            return control
        # the mask must have the size of the image in pixels
        self._fitting(region, F.interpolate(x, scale_factor=CELL))
        return control * F.interpolate(region, x.shape[-2:], mode="area")

    def _fitting(self, value: Tensor, x: Tensor, *rows: int) -> Tensor:
        self.seen.append(tuple(value.shape))
        assert value.shape[-2:] == x.shape[-2:], (value.shape, x.shape)
        assert len(value) in (rows or (1, len(x))), (len(value), len(x))
        return value


class ControlNetScript:
    """Imitates the script class of the ControlNet extension.

    `latest_network` is the hook of the latest job, or None if no unit is active.
    """

    def __init__(self, network: Network | None):
        self.latest_network = network
        self.ui_batch_option_state = ["All ControlNet units for all images in a batch", False]

    def title(self) -> str:
        return "ControlNet"


def state(units: list[Unit]) -> list[dict[str, Any]]:
    """Returns the attributes of each unit. The values are the objects themselves and not copies."""
    return [dict(vars(unit)) for unit in units]


def job(network: Network | None) -> Any:
    """Returns a stand-in for the webui's processing object.

    `network` is ControlNet's hook of the UNet, or None if no unit is active.
    """
    unet = SimpleNamespace(in_channels=4)
    if network is not None:
        network.model = unet
    model = SimpleNamespace(model=SimpleNamespace(diffusion_model=unet))
    comments: list[str] = []
    runner = SimpleNamespace(alwayson_scripts=[SimpleNamespace(), ControlNetScript(network)])
    return SimpleNamespace(
        scripts=runner, sd_model=model, comment=comments.append, comments=comments, extra_generation_params={}
    )
