"""Compares the images of several webuis: `python tests/webui/compare_hosts.py --checkpoints DIR WEBUI WEBUI...`.

For each request and seed, every webui makes two images of the final size: one without DemoFusion and one with
DemoFusion. Each row of the table compares the images of a webui for one request with the images of the first webui for
the same request. One cell of the row compares the images without DemoFusion, and another cell the images with
DemoFusion. Each of these cells contains three numbers. The first number is a PSNR in dB, computed from the images of
all seeds together. The second number is the standard deviation of the PSNRs of the single images. The third number is
the largest difference between the values of the same pixel (0 to 255).

The webuis of Forge's family evaluate the model only at whole timesteps. AUTOMATIC1111's webui also does so if a setting
is enabled, and this program enables the setting.

One difference remains: AUTOMATIC1111's webui uses the noise schedule in the checkpoint, which may be in half precision.
The webuis of Forge's family compute the schedule.
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

ROUND_TIMESTEPS = "enable_quantization"
"""The name of the setting of AUTOMATIC1111's webui that rounds timesteps."""


def pictures(folder: Path, options: argparse.Namespace) -> dict[str, list[np.ndarray]]:
    """Generates the images of the webui in `folder`.

    Maps the name of each request to two arrays (seeds, H, W, 3): the images without DemoFusion, and the images with
    DemoFusion.
    """
    made = {}
    side, steps = options.side, options.steps
    with tempfile.TemporaryDirectory() as data, started(folder, Path(data), checkpoints=options.checkpoints) as webui:
        rounding = {"override_settings": {ROUND_TIMESTEPS: True}} if ROUND_TIMESTEPS in webui.call("options") else {}
        for name, request in REQUESTS.items():
            rows = []
            for seed in range(1, options.seeds + 1):
                common = {**request, **rounding, "steps": steps, "seed": seed}
                small = {**common, "width": side, "height": side}
                plain = webui.generate(**{**common, "width": 2 * side, "height": 2 * side})
                rows.append([plain, webui.generate(ON, **small)])
            made[name] = [np.stack([levels(result.images[0]) for result in kind]) for kind in zip(*rows)]
    return made


def levels(picture: Image.Image) -> np.ndarray:
    """Returns the pixel values (H, W, 3), from 0 to 255."""
    return np.asarray(picture.convert("RGB"), float)


def decibels(error: np.ndarray) -> np.ndarray:
    """Converts mean square errors of pixel values to PSNR in dB."""
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / error)


def cell(one: np.ndarray, other: np.ndarray) -> str:
    """Formats the cell that compares the images (seeds, H, W, 3) of two webuis for one request."""
    errors = ((one - other) ** 2).mean((1, 2, 3))
    # the PSNR of equal images would be infinite
    single = decibels(np.maximum(errors, 1e-9))
    return f"{decibels(errors.mean()):.1f} ± {single.std():.1f}, {np.abs(one - other).max():.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", required=True)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("webuis", nargs="+", type=Path)
    options = parser.parse_args()
    made = {folder: pictures(folder, options) for folder in options.webuis}
    first = options.webuis[0]
    sys.stdout.write(
        f"compared with {hosts.find(first).name} | request | without DemoFusion | with DemoFusion\n---|---|---|---\n"
    )
    for folder in options.webuis[1:]:
        for name in REQUESTS:
            row = [cell(a, b) for a, b in zip(made[first][name], made[folder][name])]
            sys.stdout.write(f"{hosts.find(folder).name} | {name} | {' | '.join(row)}\n")


if __name__ == "__main__":
    main()
