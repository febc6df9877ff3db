"""Says so when this webui is too old for the extension; there is nothing to install.

The webui runs this file in a process of its own at every start, with its own folder on the module path.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

NOTICE = (
    "DemoFusion Hires needs webui 1.8 or newer: this one lacks the hook Script.post_sample, "
    "so the extension stays disabled until the webui is updated."
)

HOOK = re.compile(r"^\s+def post_sample\(", re.MULTILINE)


def candidate_roots() -> list[Path]:
    """The folders in which the webui may be: the module path, then where this extension is cloned."""
    return [*map(Path, sys.path), Path(__file__).absolute().parent.parent.parent]


def webui_lacks_hook(roots: Iterable[Path]) -> bool:
    """Whether the first `modules/scripts.py` among the roots has no `post_sample`; False if there is none to read.

    The text is searched, because importing it would load torch and gradio at every start.
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
