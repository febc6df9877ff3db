"""The families of models, one record each. Everything that differs from one family to another is in this table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lib_demofusion.host.backends.latent_form import PLAIN, LatentForm

RUNS_ON = "DemoFusion runs on SD1, SD2 and SDXL"
REFINER = "an SDXL refiner cannot make an image by itself; choose its base checkpoint"
UPSCALER = "it makes an image four times as large from another model's; choose the other model's checkpoint"


REFUSALS = (RUNS_ON, REFINER, UPSCALER)
"""The sentences of the table."""


@dataclass(frozen=True)
class Family:
    """What a family of models is to the stages."""

    name: str
    """As users know it."""
    refusal: str | None = None
    """Why no stage runs on it; None if stages do."""
    sized: bool = False
    """Whether the model receives the image's size and crop in a vector beside the prompt, as SDXL does."""
    flow: bool = False
    """Whether it is trained for flow matching: its samplers mix signal and noise, see `residual.Flow`."""
    form: LatentForm = PLAIN
    """The axes of its latents."""
    unit: int = 8
    """Sizes of images, windows and views are multiples of so many pixels."""
    distilled: bool = False
    """Whether guidance is trained into it, so that a CFG scale of 1 says nothing about the number of steps."""
    transformer: bool = False
    """Whether it is no UNet: control models and wrappers of its layers then cannot be cut to views."""

    @property
    def has_other_axes(self) -> bool:
        """Whether the webui's latents have other axes than the method's."""
        return self.form is not PLAIN

    @property
    def problem(self) -> str | None:
        """Returns name and refusal, to follow "DemoFusion does not work with", or None if stages run."""
        return None if self.refusal is None else f"{self.name}: {self.refusal}"


SD = Family("Stable Diffusion")
SDXL = Family("SDXL", sized=True)
SDXL_FLOW = Family("rectified-flow SDXL", sized=True, flow=True)
SD3 = Family("Stable Diffusion 3", RUNS_ON)

BY_ENGINE: Mapping[str, Family] = {
    "StableDiffusion": SD,
    "StableDiffusion2": SD,
    "StableDiffusionXL": SDXL,
    "StableDiffusionXLRefiner": Family("the SDXL refiner", REFINER),
    "StableDiffusion3": SD3,
    "Mugen": Family("Mugen", sized=True, flow=True),
    "Flux": Family("Flux.1", RUNS_ON),
    "Chroma": Family("Chroma", RUNS_ON),
    "Lumina2": Family("Lumina 2", RUNS_ON),
    "ZImage": Family("Z-Image", RUNS_ON),
    "Anima": Family("Anima", RUNS_ON),
    "QwenImage": Family("Qwen-Image", RUNS_ON),
    "Krea2": Family("Krea 2", RUNS_ON),
    "Flux2": Family("Flux.2 Klein", RUNS_ON),
    "ErnieImage": Family("Ernie-Image", RUNS_ON),
    "Wan": Family("Wan", RUNS_ON),
    "PiD": Family("PiD", UPSCALER),
}
"""By the class of the engine in Forge and Forge Neo (backend/diffusion_engine)."""

BY_FLAG: Mapping[str, Family] = {"is_sd3": SD3, "is_sdxl": SDXL, "is_sd1": SD, "is_sd2": SD}
"""By what a model says of itself in reForge and AUTOMATIC1111's webui."""

FLOW_FORMS: Mapping[str, Family] = {SDXL.name: SDXL_FLOW}
"""Families of which some checkpoints are trained for flow matching, by name."""


def family_of(model: Any, flow: bool = False) -> Family | None:
    """Returns the family of a loaded model, or None if it is not known; `flow` says that it is a flow model."""
    engine = type(model).__name__
    found = BY_ENGINE.get(engine) or next((f for flag, f in BY_FLAG.items() if getattr(model, flag, False)), None)
    return FLOW_FORMS.get(found.name, found) if found is not None and flow else found


def unknown(model: Any) -> Family:
    """Returns a record for a model that is not in the table."""
    return Family(type(model).__name__, RUNS_ON)
