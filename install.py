"""Prints a notice if the webui is too old for the extension. This file installs nothing.

The webui runs this file in a separate process at every start, except with the flags --skip-install and
--skip-prepare-environment. The folder of the webui is then in `sys.path`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

NOTICE = (
    "DemoFusion Hires needs webui 1.8 or newer. This webui has no hook Script.post_sample, "
    "so the extension is disabled until you update the webui."
)

HOOK = re.compile(r"^[ \t]+def post_sample\(", re.MULTILINE)


def candidate_roots() -> list[Path]:
    """Returns the folders that may be the webui's: all folders in `sys.path`, then the parent of `extensions`."""
    return [*map(Path, sys.path), Path(__file__).absolute().parent.parent.parent]


def webui_lacks_hook(roots: Iterable[Path]) -> bool:
    """Returns whether the webui has no hook `post_sample`.

    Searches the text of the first file `modules/scripts.py` in `roots` that can be read. Importing the module instead
    would load torch and gradio at every start. Returns False if no such file can be read.
    """
    for root in roots:
        path = root / "modules" / "scripts.py"
        try:
            if path.is_file():
                return HOOK.search(path.read_text(encoding="utf-8", errors="replace")) is None
        except (OSError, ValueError):
            continue
    return False


if __name__ == "__main__" and webui_lacks_hook(candidate_roots()):
    print(NOTICE)
