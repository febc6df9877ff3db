"""How far the pictures of webuis lie apart: `python tests/webui/compare_hosts.py --checkpoints DIR WEBUI WEBUI...`.

Every webui makes each request twice: a plain picture of the final size, and one with DemoFusion. The table says how far
those of the second and of every further webui lie from those of the first, in dB of 8-bit values.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from webui import hosts
from webui.conftest import started

ON = {"enabled": True, "scale": 2, "view_batch": 16}
REQUESTS: dict[str, dict[str, Any]] = {
    "Euler": {"sampler_name": "Euler"},
    "DPM++ 2M Karras": {"sampler_name": "DPM++ 2M", "scheduler": "Karras"},
    "DDIM": {"sampler_name": "DDIM"},
}


def pictures(folder: Path, checkpoints: str, side: int, steps: int) -> dict[str, list[Image.Image]]:
    """Returns by request the plain picture of the final size and that of DemoFusion."""
    made = {}
    with tempfile.TemporaryDirectory() as data, started(folder, Path(data), checkpoints=checkpoints) as webui:
        for name, request in REQUESTS.items():
            plain = webui.generate(width=2 * side, height=2 * side, steps=steps, **request)
            fused = webui.generate(ON, width=side, height=side, steps=steps, **request)
            made[name] = [plain.images[0], fused.images[0]]
    return made


def decibels(one: Image.Image, other: Image.Image) -> float:
    error = np.mean((np.asarray(one.convert("RGB"), float) - np.asarray(other.convert("RGB"), float)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", required=True)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("webuis", nargs="+", type=Path)
    options = parser.parse_args()
    made = {folder: pictures(folder, options.checkpoints, options.side, options.steps) for folder in options.webuis}
    first = options.webuis[0]
    sys.stdout.write(f"from {hosts.find(first).name}, dB | request | plain | DemoFusion\n---|---|---|---\n")
    for folder in options.webuis[1:]:
        for name in REQUESTS:
            plain, fused = (decibels(a, b) for a, b in zip(made[first][name], made[folder][name]))
            sys.stdout.write(f"{hosts.find(folder).name} | {name} | {plain:.1f} | {fused:.1f}\n")


if __name__ == "__main__":
    main()
