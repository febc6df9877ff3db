"""Stand-in: provides the modules of the installed package k-diffusion, but does not run the package's `__init__.py`.

That file imports torchvision, wandb, kornia and more. The samplers need none of these packages.
"""

import importlib.util
import pkgutil
import sys
from types import ModuleType

__path__ = __spec__.submodule_search_locations = pkgutil.extend_path(__path__, __name__)

if importlib.util.find_spec("torchvision") is None:
    # k_diffusion.utils imports torchvision for converting images, which the samplers do not need
    for _name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        sys.modules[_name] = ModuleType(_name)
