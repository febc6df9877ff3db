"""Detects patches of the model's layers by other extensions.

Some extensions replace or hook the forward of the attention layers, and distinguish conds from unconds by the number of
rows. For example, NegPiP assumes that a call with two rows per image contains both. A batch of views has more rows. If
a layer is patched, the model evaluates one view at a time, with the same rows as in the webui's own calls.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from modules import paths_internal

from lib_demofusion.host.backends import host
from lib_demofusion.host.backends import webui_controlnet as controlnet
from lib_demofusion.host.common.history import STEP_CACHE, keeps_history

OWN_FOLDER = Path(__file__).resolve().parents[3]

METHODS = ("forward", "_forward")
MODEL_METHODS = (*METHODS, "inner_forward")
"""The methods that step caches replace on the whole model. Only Flux in Forge's family has the last one."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks")

COUNTING = {"NegPiP Active": "NegPiP"}
"""Extensions that need conds and unconds in one call, by the infotext key that they write when active."""

APART = (
    "%s needs the prompt and the negative prompt in one call of the model: use a CFG scale above 1, no AND, and tick"
    ' "Pad prompt/negative prompt" and "Batch cond/uncond" in Settings'
)

CACHING = "deepcache"
"""Part of the folder name of DeepCache, which skips layers and reuses their cached output from another call."""


def extensions_with_patches(p: Any) -> list[str]:
    """Returns the folder names of the extensions that have patched layers of the job's model.

    Ignores patches by this extension, by the webui's own scripts, and by ControlNet, whose hints are cropped to views.
    """
    return _extensions_of(p, set(_files_of_patches(host().unet(p.sd_model))))


def _extensions_of(p: Any, files: Iterable[str]) -> list[str]:
    """Returns the folder names of the extensions that contain the files, except this one and ControlNet."""
    known = {str(OWN_FOLDER), _folder_of_controlnet(p)}
    folders = set(map(_extension_folder, files))
    return sorted(Path(folder).name for folder in folders if folder and folder not in known)


def refusal(p: Any) -> str | None:
    """Returns the name of an extension that does not work with the stages, and the reason, or None."""
    if any(CACHING in name.lower() for name in extensions_with_patches(p)):
        return "DeepCache: it would use the layers of one tile for another tile; switch DeepCache or DemoFusion off"
    caches = _extensions_of(p, set(_files_of_caches(host().unet(p.sd_model))))
    return STEP_CACHE % caches[0] if caches else None


def needs_one_call(p: Any) -> str:
    """Returns the error for separate calls of conds and unconds, or an empty text if no extension needs one call."""
    for key, name in COUNTING.items():
        if str(p.extra_generation_params.get(key)) == "True":
            return APART % name
    return ""


def _files_of_patches(unet: Any) -> Iterator[str]:
    """Yields the source file of every forward function and forward hook of the layers."""
    for layer in unet.modules() if hasattr(unet, "modules") else ():
        functions = [getattr(layer, name, None) for name in METHODS]
        functions += [hook for name in HOOKS for hook in getattr(layer, name, {}).values()]
        yield from (file for file in map(_file, functions) if file)


def _files_of_caches(unet: Any) -> Iterator[str]:
    """Yields the source file of every replaced forward of the whole model that keeps data from one call to the next.

    A replaced forward of a single layer is not a step cache, even if it keeps data: some extensions keep the prompt's
    tokens there.
    """
    model = getattr(unet, "diffusion_model", unet)
    functions = (getattr(model, name, None) for name in MODEL_METHODS)
    yield from (_file(function) for function in functions if function is not None and _is_cache(function))


def _is_cache(function: Any) -> bool:
    """Returns whether a function is from an extension and keeps data from one call to the next."""
    return bool(_extension_folder(_file(function))) and keeps_history(function)


def _file(function: Any) -> str:
    """Returns the source file of a function, or an empty text."""
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    if not hasattr(function, "__code__"):
        # a callable object
        function = type(function).__call__
    return str(getattr(getattr(function, "__code__", None), "co_filename", ""))


def _extension_folder(file: str) -> str:
    """Returns the folder of the extension that contains a file, or an empty text."""
    for resolve in (os.path.abspath, os.path.realpath):
        root = Path(resolve(paths_internal.extensions_dir))
        path = Path(resolve(file))
        if root in path.parents and path.parent != root:
            return os.path.realpath(root / path.relative_to(root).parts[0])
    return ""


def _folder_of_controlnet(p: Any) -> str:
    script = controlnet.extension_script(p)
    return "" if script is None else _extension_folder(str(script.filename))
