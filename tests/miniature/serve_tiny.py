"""Serves the page of the stand-in for the webui, which is in trial/webui, with the tiny random model.

Command: python tests/miniature/serve_tiny.py PORT FOLDER SECONDS. FOLDER is the data folder of the stand-in. Every
model call takes SECONDS longer, so that tests can observe the stages.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "trial" / "webui")]

import launch  # noqa: E402
import torch  # noqa: E402
from tiny import TinyModel  # noqa: E402


class SlowModel(TinyModel):
    """A tiny model that waits for `seconds` before it predicts."""

    seconds = 0.0

    def unet(self, *args: Any) -> torch.Tensor:
        time.sleep(self.seconds)
        return super().unet(*args)


if __name__ == "__main__":
    torch.set_num_threads(1)
    model = SlowModel()
    model.seconds = float(sys.argv[3])
    launch.prepare(Path(sys.argv[2]), model)
    launch.serve(int(sys.argv[1]), browser=False)
