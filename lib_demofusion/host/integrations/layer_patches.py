"""Detects patches of the model's layers by other extensions.

Some extensions replace the forward of the attention layers or add forward hooks. These functions can use the number of
rows of a model call to distinguish conds from unconds. For example, NegPiP assumes that a call with two rows per image
contains cond and uncond. A batch of several views has more rows. If a layer is patched, the stages therefore evaluate
one view at a time, so that each model call has as many rows as the webui's own calls.
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
"""The methods of the whole model that a step cache can replace.

Of these methods, `inner_forward` exists only in Forge's classes for Flux and Chroma.
"""
HOOKS = ("_forward_hooks", "_forward_pre_hooks")

ONE_CALL = {"NegPiP Active": "NegPiP"}
"""Extensions that need conds and unconds in one model call.

A key is the infotext entry that an active extension writes. A value is the name of this extension.
"""

NEEDS_ONE_CALL = (
    "%s needs the prompt and the negative prompt in one call of the model: use a CFG scale above 1, no AND, and tick"
    ' "Pad prompt/negative prompt" and "Batch cond/uncond" in Settings, if your webui has them'
)

DEEPCACHE = "deepcache"
"""Part of the folder name of the extension DeepCache.

DeepCache skips layers of the model. In their place, it uses the output that these layers had in an earlier model call.
"""


def extensions_with_patches(p: Any) -> list[str]:
    """Returns the folder names of the extensions that have patched layers of the job's model.

    Ignores patches by the webui, its built-in extensions and DemoFusion. Also ignores patches by ControlNet, because
    the stages crop its hints to the views.
    """
    return _extensions_of(p, set(_files_of_patches(host().unet(p.sd_model))))


def _extensions_of(p: Any, files: Iterable[str]) -> list[str]:
    """Returns the folder names of the extensions that contain `files`, except DemoFusion and ControlNet."""
    known = {str(OWN_FOLDER), _folder_of_controlnet(p)}
    folders = set(map(_extension_folder, files))
    return sorted(Path(folder).name for folder in folders if folder and folder not in known)


def refusal(p: Any) -> str | None:
    """Returns why an extension that patches the model does not work with the stages, or None.

    The text begins with the name of the extension.
    """
    if any(DEEPCACHE in name.lower() for name in extensions_with_patches(p)):
        return "DeepCache: it would use the layers of one tile for another tile; switch DeepCache or DemoFusion off"
    caches = _extensions_of(p, set(_files_of_caches(host().unet(p.sd_model))))
    return STEP_CACHE % caches[0] if caches else None


def needs_one_call(p: Any) -> str:
    """Returns the text of the error to raise if a model call has other rows than one cond and one uncond per image.

    Returns an empty text if the job uses no extension that needs such calls.
    """
    for key, name in ONE_CALL.items():
        if str(p.extra_generation_params.get(key)) == "True":
            return NEEDS_ONE_CALL % name
    return ""


def _files_of_patches(unet: Any) -> Iterator[str]:
    """Yields the source file of every function that is the forward or a forward hook of a layer."""
    for layer in unet.modules() if hasattr(unet, "modules") else ():
        functions = [getattr(layer, name, None) for name in METHODS]
        functions += [hook for name in HOOKS for hook in getattr(layer, name, {}).values()]
        yield from (file for file in map(_file, functions) if file)


def _files_of_caches(unet: Any) -> Iterator[str]:
    """Yields the source file of every step cache that replaces the forward of the whole model.

    The forward of a single layer is not checked. Some extensions replace it by a function that keeps data, such as the
    tokens of the prompt, but this data is the same for all views.
    """
    model = getattr(unet, "diffusion_model", unet)
    functions = (getattr(model, name, None) for name in MODEL_METHODS)
    yield from (_file(function) for function in functions if function is not None and _is_cache(function))


def _is_cache(function: Any) -> bool:
    """Returns whether a function belongs to an extension and keeps data from one call to the next."""
    return bool(_extension_folder(_file(function))) and keeps_history(function)


def _file(function: Any) -> str:
    """Returns the source file of a function or callable object, or an empty text if the file is unknown."""
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    if not hasattr(function, "__code__"):
        function = type(function).__call__
    return str(getattr(getattr(function, "__code__", None), "co_filename", ""))


def _extension_folder(file: str) -> str:
    """Returns the folder of the extension that contains a file, or an empty text if no extension contains it."""
    for resolve in (os.path.abspath, os.path.realpath):
        root = Path(resolve(paths_internal.extensions_dir))
        path = Path(resolve(file))
        if root in path.parents and path.parent != root:
            return os.path.realpath(root / path.relative_to(root).parts[0])
    return ""


def _folder_of_controlnet(p: Any) -> str:
    script = controlnet.extension_script(p)
    return "" if script is None else _extension_folder(str(script.filename))
