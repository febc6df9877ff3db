"""Makes the stand-in for the webui (trial/webui) and the helpers in tests/miniature importable.

The folders are added to sys.path. Also imports gradio and k_diffusion, without the warnings that these imports cause.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

TESTS = Path(__file__).resolve().parent

for folder in (TESTS.parent / "trial" / "webui", TESTS / "miniature"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

with warnings.catch_warnings():
    # gradio 3.41.2 and FastAPI use functions of other packages that are now deprecated
    warnings.simplefilter("ignore")
    import gradio  # noqa: F401
    import k_diffusion.external
    import k_diffusion.sampling  # noqa: F401
