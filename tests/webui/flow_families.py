"""Loads checkpoints of flow models one after another in a webui of Forge's family, for the tests of these models."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from webui import hosts
from webui.conftest import DEFAULTS, Result, Webui, facts_or_skip, started

MAKER = Path(__file__).parent / "flow_checkpoints.py"

FAMILIES = {
    "rectified-sdxl": "rectified-flow SDXL",
    "zimage": "Z-Image",
    "schnell": "Flux.1",
    "flux": "Flux.1",
    "chroma": "Chroma",
    "lumina": "Lumina 2",
    "qwen": "Qwen-Image",
    "anima": "Anima",
    "klein": "Flux.2 Klein",
    "ernie": "Ernie-Image",
    "krea": "Krea 2",
    "mugen": "Mugen",
    "sd3": "Stable Diffusion 3",
}
"""The family of each checkpoint that `flow_checkpoints.py` makes."""

NO_REFERENCE = "klein_no_reference"
OPTIONS = {**DEFAULTS, NO_REFERENCE: True}
"""The webui's settings in these tests. Without NO_REFERENCE, Forge Neo passes the upload of img2img to Klein as a
reference image, and DemoFusion refuses the job."""

SMALL = {"width": 64, "height": 64, "steps": 3, "sampler_name": "Euler", "scheduler": "Simple", "cfg_scale": 1}
TWICE = (128, 128)
"""The size of SMALL at 2x."""
ON: dict[str, Any] = {"enabled": True, "scale": 2, "view_batch": 16, "overlap": 0, "jitter": False}


@pytest.fixture(scope="module")
def webui(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webui]:
    """Uses a running webui, or starts a webui. If the folder of checkpoints is empty, makes the checkpoints first."""
    url, folder = request.config.getoption("--webui-url"), request.config.getoption("--webui")
    checkpoints = request.config.getoption("--checkpoints")
    if url:
        server = Webui(url)
        prepare(server)
        yield server
        return
    if not folder or not checkpoints:
        pytest.skip("no real webui with flow models: name one with --webui DIR --checkpoints DIR")
    if hosts.find(Path(folder)) not in (hosts.NEO, hosts.FORGE):
        pytest.skip("this webui cannot load flow models")
    checkpoints = Path(checkpoints).resolve()
    if not any(checkpoints.glob("*.safetensors")):
        make_checkpoints(Path(folder), checkpoints)
    with started(Path(folder), tmp_path_factory.mktemp("webui"), checkpoints=str(checkpoints)) as server:
        prepare(server)
        yield server


def prepare(server: Webui) -> None:
    """Sets the options in OPTIONS, except those that the webui does not have."""
    known = server.call("options")
    server.call("options", {name: value for name, value in OPTIONS.items() if name in known})


def make_checkpoints(folder: Path, checkpoints: Path) -> None:
    """Makes a checkpoint of every family that the webui in `folder` supports."""
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([str(python), str(MAKER), str(folder), str(checkpoints)], env=environment, check=True)


@pytest.fixture(scope="module", params=FAMILIES)
def family(webui: Webui, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Loads a checkpoint of one family, and returns the properties that DemoFusion detects for this model."""
    kind = request.param
    titles = [entry["title"] for entry in webui.call("sd-models")]
    if not any(title.startswith(f"{kind}.safetensors") for title in titles):
        pytest.skip(f"the webui has no checkpoint {kind}.safetensors")
    webui.call("options", {"sd_model_checkpoint": f"{kind}.safetensors"})
    small(webui, None)
    found: dict[str, Any] = facts_or_skip(webui, "family")
    assert found["name"] == FAMILIES[kind]
    assert found["flow"]
    return found


@contextmanager
def linked(webui: Webui, checkpoint: str, name: str) -> Iterator[str]:
    """Gives the file of a checkpoint a second name (a hard link), and yields this name.

    The webui recognizes some kinds of models only by the name of the file.
    """
    files = [Path(entry["filename"]) for entry in webui.call("sd-models")]
    found = next((path for path in files if path.name == checkpoint), None)
    if found is None:
        pytest.skip(f"the webui has no checkpoint {checkpoint}")
    link = found.with_name(name)
    os.link(found, link)
    try:
        webui.call("refresh-checkpoints", {})
        yield name
    finally:
        link.unlink()
        webui.call("refresh-checkpoints", {})


def small(webui: Webui, demofusion: Any = ON, **request: Any) -> Result:
    """Generates a small image: with DemoFusion by default, or without it if `demofusion` is None."""
    return webui.generate(demofusion, **{**SMALL, "distilled_cfg_scale": 3.5, **request})


def pixels(image: Image.Image) -> Any:
    """Returns the pixel values (H, W, 3) as signed integers, so that they can be subtracted."""
    return np.asarray(image.convert("RGB"), int)
