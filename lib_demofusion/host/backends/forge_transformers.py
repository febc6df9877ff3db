"""What a stage cannot run beside on the transformers of Forge Neo, and the traces that its encoders leave."""

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
"""Attributes of an engine that hold what was encoded, for its next prompt (backend/diffusion_engine)."""


def of_transformer(p: Any, family: Family) -> str | None:
    """Returns what a job on a transformer cannot run beside, and why, or None."""
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
    """Returns whether the model was shown reference images beside the prompt in the base pass.

    Before that pass the job before may have left some, which the host removes when it encodes the prompt.
    """
    return getattr(p, "sampler", None) is not None and bool(getattr(dynamic_args, "ref_latents", None))


@contextmanager
def nothing_kept(model: Any) -> Iterator[None]:
    """Runs a block that encodes images, after which the engine remembers none of them.

    Engines that edit images keep what they encode: the next job would be shown it as its reference.
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
