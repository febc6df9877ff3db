"""Stand-in: provides the modules of the installed k-diffusion without the imports of its package.

The package imports torchvision, wandb, kornia and more. The samplers use none of them.
"""

import importlib.util
import pkgutil
import sys
from types import ModuleType

__path__ = __spec__.submodule_search_locations = pkgutil.extend_path(__path__, __name__)

if importlib.util.find_spec("torchvision") is None:
    # k_diffusion.utils imports it to convert images
    for _name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        sys.modules[_name] = ModuleType(_name)
