"""Stand-in: provides the installed k-diffusion's modules without its package's own imports.

The package imports torchvision, wandb, kornia and more, none of which the samplers use.
"""

import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType


def _installed() -> list[str]:
    here = Path(__file__).resolve().parent.parent
    found = PathFinder.find_spec(__name__, [entry for entry in sys.path if Path(entry or ".").resolve() != here])
    if found is None or found.submodule_search_locations is None:
        raise ModuleNotFoundError("k-diffusion is not installed; see requirements-try.txt", name=__name__)
    return list(found.submodule_search_locations)


def _stub(name: str) -> None:
    """Puts an empty package into sys.modules and into its parent."""
    module = ModuleType(name)
    module.__path__ = []
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


__path__ = __spec__.submodule_search_locations = _installed()

if importlib.util.find_spec("torchvision") is None:
    # k_diffusion.utils imports it to convert images, which no sampler does
    for _name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        _stub(_name)
