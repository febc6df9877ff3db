"""Loads only k-diffusion's samplers and denoisers, because the package imports torchvision, wandb and more."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

PACKAGE = "k_diffusion"
# k_diffusion.utils imports it to convert PIL images, which no sampler does.
STUB = "torchvision.transforms.functional"


def is_within(name: str, package: str) -> bool:
    """Returns whether a module is the package itself or belongs to it."""
    return name == package or name.startswith(f"{package}.")


@contextmanager
def modules_restored(*packages: str) -> Iterator[None]:
    """Hides the modules of the packages within the context, and restores their entries in sys.modules afterwards."""

    def loaded() -> dict[str, ModuleType]:
        return {
            name: module
            for name, module in sys.modules.items()
            if any(is_within(name, package) for package in packages)
        }

    before = loaded()
    try:
        for name in before:
            del sys.modules[name]
        yield
    finally:
        for name in loaded():
            del sys.modules[name]
        sys.modules.update(before)


def add_stub(name: str) -> None:
    """Puts an empty module, and its parents as empty packages, into sys.modules."""
    parent, _, child = name.rpartition(".")
    module = ModuleType(name)
    module.__path__ = []
    sys.modules[name] = module
    if parent:
        if parent not in sys.modules:
            add_stub(parent)
        setattr(sys.modules[parent], child, module)


@functools.cache
def load(module: str = "sampling") -> ModuleType:
    """Returns the installed package's module of that name, and leaves sys.modules unchanged."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"No package named {PACKAGE!r}; see requirements-nodeps.txt", name=PACKAGE)

    with modules_restored(PACKAGE, STUB.partition(".")[0]):
        add_stub(STUB)
        # a package with the right folder that does not run the real __init__
        package = ModuleType(PACKAGE)
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules[PACKAGE] = package
        return importlib.import_module(f"{PACKAGE}.{module}")
