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
    """The shape of a model's latents in the webui, and the conversion to the shape (B, C, h, w) in `method`.

    In `method`, a cell of a latent covers 8x8 pixels. This base class is for models whose latents have the same shape
    in the webui. The subclasses are for models whose latents have another shape.
    """

    copies = False
    """Whether the result of `to_method` is a copy. Otherwise, the result and the webui's latent share memory.

    If the caller changes a copy, the webui's latent stays the same. The caller must then convert the copy with
    `to_host` and write it to the webui's latent.
    """

    def to_method(self, x: Tensor) -> Tensor:
        """Converts a latent of the webui to the shape that `method` uses."""
        return x

    def to_host(self, x: Tensor) -> Tensor:
        """Converts a latent of `method` to the shape that the webui uses."""
        return x

    def host_shape(self, channels: int, size: Size) -> tuple[int, ...]:
        """Returns the shape of a latent in the webui, without the batch axis.

        The same latent has the shape (B, channels, *size) in `method`.
        """
        return (channels, *size)


class FiveAxes(LatentForm):
    """Latents (B, C, 1, h, w) of the image models that use Wan's video VAE. The third axis is time."""

    def to_method(self, x: Tensor) -> Tensor:
        return x.squeeze(2) if x.ndim == 5 else x

    def to_host(self, x: Tensor) -> Tensor:
        return x.unsqueeze(2)

    def host_shape(self, channels: int, size: Size) -> tuple[int, ...]:
        return (channels, 1, *size)


class Packed(LatentForm):
    """Latents (B, 4 C, h / 2, w / 2) in the webui. Each position covers 16 x 16 pixels and holds 2 x 2 cells.

    `to_method` unpacks such a latent into cells of 8 x 8 pixels. A dilated view at twice the base size therefore shows
    8 pixels and skips the next 8. Without unpacking, the view would show 16 pixels and skip the next 16.
    """

    copies = True

    def to_method(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x, 2)

    def to_host(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, 2)

    def host_shape(self, channels: int, size: Size) -> tuple[int, ...]:
        return (4 * channels, size[0] // 2, size[1] // 2)


PLAIN, FIVE_AXES, PACKED = LatentForm(), FiveAxes(), Packed()


UNSUPPORTED = "this kind of model is not supported; choose another checkpoint"
REFINER = "an SDXL refiner cannot make an image by itself; choose its base checkpoint"
UPSCALER = "this checkpoint only enlarges images of other models; choose the checkpoint of an image model"


REFERENCE_HINT = "; remove them, or choose a checkpoint that does not edit images"
KLEIN_HINT = "; remove them, and for img2img switch on [Klein] Disable Reference in the settings"
# with Anima, the webui keeps the reference image of an earlier job until it loads a checkpoint or encodes an image
ANIMA_HINT = "; switch off [Anima] Enable Reference in the settings, and load another checkpoint and this one again"


VIDEO = "this checkpoint makes videos; choose the checkpoint of an image model"
REFUSALS = (UNSUPPORTED, REFINER, UPSCALER, VIDEO)
"""All values of `Family.refusal` except None."""


@dataclass(frozen=True)
class Family:
    """The properties of a model family that affect the stages."""

    name: str
    """The name in messages, such as "Flux.1"."""
    refusal: str | None = None
    """The reason why the stages do not support the family, or None if they support it."""
    sized: bool = False
    """Whether the model receives the image's size and crop in a vector in addition to the prompt, as SDXL does."""
    flow: bool = False
    """Whether the model was trained for flow matching. Then x is a mix of latent and noise (see `residual.Flow`)."""
    form: LatentForm = PLAIN
    """The shape of the latents in the webui."""
    unit: int = 8
    """The heights and widths of images and views must be multiples of this number of pixels."""
    distilled: bool = False
    """Whether guidance is usually built into such models. They then use a CFG scale of 1, even with many steps."""
    transformer: bool = False
    """Whether the model is a transformer.

    The stages refuse ControlNet with a transformer, because they cannot crop its hints to views. They also refuse a
    transformer whose model call another extension has wrapped (see `forge_refusals.patch_problem`).
    """
    reference_hint: str = REFERENCE_HINT
    """The end of the message that refuses reference images: advice on how to remove the reference images."""

    @property
    def unit_cells(self) -> int:
        """`unit` in latent cells of 8 pixels."""
        return self.unit // CELL

    @property
    def has_other_shape(self) -> bool:
        """Whether the shape of the latents in the webui differs from the shape in `method`."""
        return self.form is not PLAIN

    @property
    def problem(self) -> str | None:
        """The family's name and the reason why the stages do not support the family, or None if they support it.

        The message to the user is "DemoFusion does not work with" and this text.
        """
        return None if self.refusal is None else f"{self.name}: {self.refusal}"


def _transformer(name: str, form: LatentForm = PLAIN, hint: str = REFERENCE_HINT) -> Family:
    """Creates the Family of a transformer that was trained for flow matching.

    `unit` is 16, because these models evaluate patches of 2 x 2 cells. If the webui's latent is not packed and has an
    odd number of rows or columns, they add cells of the opposite border, which would be visible in a view. `distilled`
    is always True, because most of these models have built-in guidance. Some, such as Lumina 2, have none.
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
    # Mugen's VAE packs 2 x 2 cells before it decodes a latent. If a side is odd, the VAE appends cells of zeros
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
"""Maps the name of an engine to the family. Engines are the classes of loaded models in Forge and Forge Neo.

The webuis define these classes in `backend/diffusion_engine`.
"""

BY_FLAG: Mapping[str, Family] = {
    "is_sd3": Family(SD3.name, UNSUPPORTED),
    "is_sdxl": SDXL,
    "is_sd1": SD,
    "is_sd2": SD,
}
"""Maps an attribute of a loaded model to the family.

In a model of reForge or AUTOMATIC1111's webui, the attribute of its family is True.
"""

FLOW_FAMILIES: Mapping[str, Family] = {SDXL.name: SDXL_FLOW}
"""Maps the name of a family to the Family of those of its checkpoints that were trained for flow matching."""


def family_of(model: Any, flow: bool = False) -> Family | None:
    """Returns the family of a loaded model, or None if the family is not in this file.

    `flow` says whether the model was trained for flow matching.
    """
    engine = type(model).__name__
    by_flag = next((f for flag, f in BY_FLAG.items() if getattr(model, flag, False)), None)
    return family_named(engine, flow) or _for_flow(by_flag, flow)


def family_named(engine: str, flow: bool = False) -> Family | None:
    """Returns the family of the engine with this name, or None if the name is not in BY_ENGINE."""
    return _for_flow(BY_ENGINE.get(engine), flow)


def _for_flow(found: Family | None, flow: bool) -> Family | None:
    """Returns the entry of FLOW_FAMILIES for `found` if `flow` is True and there is such an entry, else `found`."""
    return FLOW_FAMILIES.get(found.name, found) if found is not None and flow else found


def unknown(model: Any) -> Family:
    """Creates a Family with a refusal, for a model whose family is not in this file."""
    return Family(type(model).__name__, UNSUPPORTED)
