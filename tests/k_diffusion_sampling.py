"""Loads single modules of k-diffusion, because importing the whole package needs torchvision, wandb and more."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

PACKAGE = "k_diffusion"
STUB = "torchvision.transforms.functional"
"""A module that k_diffusion.utils imports to convert PIL images.

The samplers do not use this module, so a stub replaces it.
"""


def is_within(name: str, package: str) -> bool:
    """Returns whether the module `name` is the package `package` itself, or a module inside this package."""
    return name == package or name.startswith(f"{package}.")


@contextmanager
def modules_restored(*packages: str) -> Iterator[None]:
    """Returns a context that begins without the modules of `packages` in sys.modules.

    At the end, the modules from before replace all modules of these packages that were imported within the context.
    """

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
    """Adds an empty module to sys.modules. Parent packages that are missing are added as empty packages."""
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
    """Imports and returns a module of the installed k-diffusion.

    Afterwards, sys.modules has the same modules of k-diffusion and torchvision as before. Raises ModuleNotFoundError if
    k-diffusion is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"No package named {PACKAGE!r}; see requirements-nodeps.txt", name=PACKAGE)

    with modules_restored(PACKAGE, STUB.partition(".")[0]):
        add_stub(STUB)
        # modules are imported from the real folder, but the __init__ of the real package does not run
        package = ModuleType(PACKAGE)
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules[PACKAGE] = package
        return importlib.import_module(f"{PACKAGE}.{module}")
