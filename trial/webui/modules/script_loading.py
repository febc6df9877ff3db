"""Stand-in: executes a script's file; the module is not put into sys.modules, as in the webui."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any


def load_module(path: Any) -> ModuleType:
    """The module of a file."""
    spec = importlib.util.spec_from_file_location(Path(path).name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"not a Python file: {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
