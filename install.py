"""Prints a notice if this webui is too old for the extension. The extension has nothing to install.

The webui runs this file in a separate process at every start, with the webui's folder on the module path.
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

HOOK = re.compile(r"^\s+def post_sample\(", re.MULTILINE)


def candidate_roots() -> list[Path]:
    """Returns the folders that may contain the webui: the module path, then the folder that contains `extensions`."""
    return [*map(Path, sys.path), Path(__file__).absolute().parent.parent.parent]


def webui_lacks_hook(roots: Iterable[Path]) -> bool:
    """Returns whether the first `modules/scripts.py` in the roots has no `post_sample`. False without such a file.

    Searches the text, because importing the module would load torch and gradio at every start.
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
