"""Stand-in: executes a script's file. Like the webui, it does not add the module to sys.modules."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any


def load_module(path: Any) -> ModuleType:
    """Loads a file as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"not a Python file: {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
