"""The extension's entry point. Defines the webui script, unless another copy of the extension is already loaded."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from modules import scripts

PACKAGE = "lib_demofusion"
FOLDER = Path(__file__).resolve().parent.parent
INSTALLED_TWICE = (
    "DemoFusion Hires is installed twice, in %s and in %s. "
    "The webui uses the copy in %s. Disable or remove one of them."
)


def loaded_copy() -> Path | None:
    """Returns the folder of the other copy of the extension if the webui has already loaded it, else None."""
    folders = (Path(data.path).parent.parent for data in scripts.scripts_data)
    return next((folder for folder in folders if (folder / PACKAGE).is_dir()), None)


def forget_disabled_copy() -> None:
    """Removes another copy's modules from sys.modules, so that Python imports the modules of this copy.

    sys.modules still contains them if the user has disabled the other copy while the webui was running.
    """
    file = getattr(sys.modules.get(PACKAGE), "__file__", None)
    if file is not None and Path(file).resolve().parent.parent != FOLDER:
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]


copy = loaded_copy()
if copy is None:
    forget_disabled_copy()
    from lib_demofusion.host.script import DemoFusionHires, register  # noqa: F401 (the webui finds the class here)

    register()
else:
    logging.getLogger("DemoFusion").warning(INSTALLED_TWICE, copy, Path(__file__).parent.parent, copy)
