"""Refuses features that do not work with stages on Forge Neo's transformers, and cleans up after their encoders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from modules import shared

from lib_demofusion.host.backends.families import Family

try:
    from backend.args import dynamic_args
except ImportError:
    dynamic_args = None

REFERENCES = "reference images of %s: every tile would show the whole reference%s"
KLEIN = "; for img2img, switch on [Klein] Disable Reference in the settings"
CONTROL = "ControlNet on %s: the hints of its control models cannot be cut to the tiles"
MASK = "inpainting with %s: the webui's masks have other axes than its latents"
CACHE = "Nunchaku's Cache Threshold above 0: it takes a tile for a repetition of the one before; set it to 0"

KEPT = ("ini_latent", "ref_latents")
"""Attributes in which an engine stores encoded images for its next prompt (backend/diffusion_engine)."""


def of_transformer(p: Any, family: Family) -> str | None:
    """Returns the feature that does not work with the stages of a job on a transformer, and why, or None."""
    if has_references(p):
        return REFERENCES % (family.name, KLEIN if family.name.endswith("Klein") else "")
    if float(getattr(shared.opts, "svdq_cache_threshold", 0.0)) > 0 and getattr(dynamic_args, "nunchaku", False):
        return CACHE
    if getattr(p, "mask", None) is not None and family.has_other_axes:
        return MASK % family.name
    units: Sequence[Any] = getattr(p.scripts, "alwayson_scripts", None) or ()
    controlled = any(e.title().lower() == "controlnet" and getattr(e, "current_params", None) for e in units)
    return CONTROL % family.name if controlled else None


def has_references(p: Any) -> bool:
    """Returns whether the model received reference images in addition to the prompt in the base pass.

    Before that pass, images from the previous job may remain. The host removes them when it encodes the prompt.
    """
    return getattr(p, "sampler", None) is not None and bool(getattr(dynamic_args, "ref_latents", None))


@contextmanager
def nothing_kept(model: Any) -> Iterator[None]:
    """Runs a block that encodes images, and then removes them from the engine.

    Engines for image editing store the images that they encode. The next job would use them as references.
    """
    own = {name: getattr(model, name) for name in KEPT if hasattr(model, name)}
    lists = {name: list(value) for name, value in own.items() if isinstance(value, list)}
    shown = list(getattr(dynamic_args, "ref_latents", None) or ())
    try:
        yield
    finally:
        for name, value in own.items():
            if name in lists:
                value[:] = lists[name]
            setattr(model, name, value)
        if dynamic_args is not None and hasattr(dynamic_args, "ref_latents"):
            dynamic_args.ref_latents = shown
