"""The known model families, the properties in which they differ, and the shapes of their latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lib_demofusion.method.plan import CELL
from lib_demofusion.method.views import Size


class LatentForm:
    """Latents (B, C, h, w) with 8 pixels per cell. They have the same shape in the webui and in `method`.

    Subclasses convert latents that have another shape in the webui.
    """

    copies = False
    """Whether `to_method` returns a copy. If it does, the caller must write changes back to the webui's latent."""

    def to_method(self, x: Tensor) -> Tensor:
        """Converts a latent of the webui to the shape that `method` uses."""
        return x

    def to_host(self, x: Tensor) -> Tensor:
        """Converts a latent of `method` to the shape that the webui uses."""
        return x

    def host_shape(self, channels: int, size: Size) -> tuple[int, ...]:
        """Returns the shape of the webui's latent, without the batch axis.

        `channels` and `size` (in cells) describe the same latent in `method`.
        """
        return (channels, *size)


class FiveAxes(LatentForm):
    """Latents (B, C, 1, h, w) of the engines that share Wan's video VAE. The third axis is time."""

    def to_method(self, x: Tensor) -> Tensor:
        return x.squeeze(2) if x.ndim == 5 else x

    def to_host(self, x: Tensor) -> Tensor:
        return x.unsqueeze(2)

    def host_shape(self, channels: int, size: Size) -> tuple[int, ...]:
        return (channels, 1, *size)


class Packed(LatentForm):
    """Latents (B, 4 C, h / 2, w / 2) in the webui. Each position covers 16 x 16 pixels and holds 2 x 2 cells.

    Dilated views need cells of 8 pixels. In a packed latent at twice the base size, a dilated view would show 16 pixels
    and skip the next 16.
    """

    copies = True

    def to_method(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x, 2)

    def to_host(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, 2)

    def host_shape(self, channels: int, size: Size) -> tuple[int, ...]:
        return (4 * channels, size[0] // 2, size[1] // 2)


PLAIN, FIVE_AXES, PACKED = LatentForm(), FiveAxes(), Packed()


RUNS_ON = "this kind of model is not supported; choose another checkpoint"
REFINER = "an SDXL refiner cannot make an image by itself; choose its base checkpoint"
UPSCALER = "this checkpoint only enlarges images of other models; choose the checkpoint of an image model"


REFERENCE_HINT = "; remove them, or choose a checkpoint that does not edit images"
KLEIN_HINT = "; remove them, and for img2img switch on [Klein] Disable Reference in the settings"
# the webui drops its reference images only when it loads a checkpoint or encodes another upload
ANIMA_HINT = "; switch off [Anima] Enable Reference in the settings, and load another checkpoint and this one again"


VIDEO = "this checkpoint makes videos; choose the checkpoint of an image model"
REFUSALS = (RUNS_ON, REFINER, UPSCALER, VIDEO)
"""All reasons why a family is refused."""


@dataclass(frozen=True)
class Family:
    """The properties of a model family that matter to the stages."""

    name: str
    """The name that users know."""
    refusal: str | None = None
    """Why the stages do not support the family, or None if they do."""
    sized: bool = False
    """Whether the model receives the image's size and crop in a vector in addition to the prompt, as SDXL does."""
    flow: bool = False
    """Whether the model was trained for flow matching. Its samplers mix signal and noise (see `residual.Flow`)."""
    form: LatentForm = PLAIN
    """The shape of the latents in the webui."""
    unit: int = 8
    """The sizes of images and views are multiples of this number of pixels."""
    distilled: bool = False
    """Whether guidance is built into the model. A CFG scale of 1 then does not identify a few-step model."""
    transformer: bool = False
    """Whether the model is a transformer. Its control models and layer wrappers cannot be cropped to views."""
    reference_hint: str = REFERENCE_HINT
    """Advice on how to use no reference images. It is the end of the message that refuses reference images."""

    @property
    def unit_cells(self) -> int:
        """`unit` in latent cells of 8 pixels."""
        return self.unit // CELL

    @property
    def has_other_axes(self) -> bool:
        """Whether latents have another shape in the webui than in `method`."""
        return self.form is not PLAIN

    @property
    def problem(self) -> str | None:
        """Returns the family's name and why the stages do not support it, or None if they do.

        The text continues "DemoFusion does not work with".
        """
        return None if self.refusal is None else f"{self.name}: {self.refusal}"


def _transformer(name: str, form: LatentForm = PLAIN, hint: str = REFERENCE_HINT) -> Family:
    """Returns the record of a flow-matching transformer.

    These models divide a latent into patches of 2 x 2 cells, and pad an odd size with cells of the opposite border.
    Most of them have built-in guidance. A CFG scale of 1 is normal for them and does not identify a few-step model.
    """
    return Family(name, flow=True, form=form, unit=16, distilled=True, transformer=True, reference_hint=hint)


SD = Family("Stable Diffusion")
SDXL = Family("SDXL", sized=True)
SDXL_FLOW = Family("rectified-flow SDXL", sized=True, flow=True)
SD3 = Family("Stable Diffusion 3", flow=True, unit=16, transformer=True)


BY_ENGINE: Mapping[str, Family] = {
    "StableDiffusion": SD,
    "StableDiffusion2": SD,
    "StableDiffusionXL": SDXL,
    "StableDiffusionXLRefiner": Family("the SDXL refiner", REFINER),
    "StableDiffusion3": SD3,
    # its VAE packs 2 x 2 cells of 8 pixels, and pads odd sizes with zeros
    "Mugen": Family("Mugen", sized=True, flow=True, unit=16),
    "Flux": _transformer("Flux.1"),
    "Chroma": _transformer("Chroma"),
    "Lumina2": _transformer("Lumina 2"),
    "ZImage": _transformer("Z-Image"),
    "Anima": _transformer("Anima", FIVE_AXES, hint=ANIMA_HINT),
    "QwenImage": _transformer("Qwen-Image", FIVE_AXES),
    "Krea2": _transformer("Krea 2", FIVE_AXES),
    "Flux2": _transformer("Flux.2 Klein", PACKED, hint=KLEIN_HINT),
    "ErnieImage": _transformer("Ernie-Image", PACKED),
    "Wan": Family("Wan", VIDEO),
    "PiD": Family("PiD", UPSCALER),
}
"""Families by the engine's class in Forge and Forge Neo (backend/diffusion_engine)."""

BY_FLAG: Mapping[str, Family] = {
    "is_sd3": Family(SD3.name, RUNS_ON),
    "is_sdxl": SDXL,
    "is_sd1": SD,
    "is_sd2": SD,
}
"""Families by the flag that a model sets in reForge and AUTOMATIC1111's webui."""

FLOW_FORMS: Mapping[str, Family] = {SDXL.name: SDXL_FLOW}
"""Maps the name of a family to the record for its checkpoints that were trained for flow matching."""


def family_of(model: Any, flow: bool = False) -> Family | None:
    """Returns the family of a loaded model, or None if it is unknown. `flow` is True for a flow model."""
    engine = type(model).__name__
    by_flag = next((f for flag, f in BY_FLAG.items() if getattr(model, flag, False)), None)
    return family_named(engine, flow) or _trained(by_flag, flow)


def family_named(engine: str, flow: bool = False) -> Family | None:
    """Returns the family of an engine's class in Forge and Forge Neo, or None if it is unknown."""
    return _trained(BY_ENGINE.get(engine), flow)


def _trained(found: Family | None, flow: bool) -> Family | None:
    """Returns the record for flow matching if `flow` is True and there is one, else `found`."""
    return FLOW_FORMS.get(found.name, found) if found is not None and flow else found


def unknown(model: Any) -> Family:
    """Returns a record that refuses a model whose class this file does not contain."""
    return Family(type(model).__name__, RUNS_ON)
