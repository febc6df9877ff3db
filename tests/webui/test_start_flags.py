"""Tests that --nowebui and the start flags for little GPU memory do not change the images.

Each test starts a webui, which needs --webui DIR.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from webui.conftest import TITLE, Result, Webui, png, started
from webui.test_api_and_scripts import SMALL, TWICE
from webui.test_generate import assert_good

pytestmark = [pytest.mark.webui, pytest.mark.slow]

CHECKPOINTS = ("tiny-sdxl", "tiny-sd1")
UPLOAD: dict[str, Any] = {"path": "img2img", "init_images": [png(Image.radial_gradient("L").resize((64, 64)))]}


def pictures(webui: Webui) -> dict[str, Result]:
    """Generates images with each checkpoint, with and without DemoFusion. The keys of the dict describe the images."""
    made = {}
    for name in CHECKPOINTS:
        webui.call("options", {"sd_model_checkpoint": f"{name}.safetensors"})
        made[f"{name}, plain"] = webui.generate(**SMALL)
        made[f"{name}, text"] = webui.generate({**TWICE, "return_stages": True}, **SMALL, batch_size=2)
        made[f"{name}, image"] = webui.generate(TWICE, **SMALL, **UPLOAD)
        made[f"{name}, pixels"] = webui.generate(
            {**TWICE, "upscaler": "Lanczos (pixels)", "denoising_strength": 0.5}, **SMALL
        )
        made[f"{name}, plain again"] = webui.generate(**SMALL)
    return made


def listed(webui: Webui) -> list[Any]:
    """Returns the fields of this extension in the API, and its axes of the X/Y/Z plot.

    Only the axes of this extension are compared. The axes of the webui's own HyperTile are missing with --nowebui,
    because HyperTile adds them together with the page.
    """
    info = webui.call("script-info")
    fields = [entry for entry in info if entry["name"] == TITLE.lower()]
    plot = next(entry for entry in info if entry["name"] == "x/y/z plot")
    axes = [axis for axis in plot["args"][0]["choices"] if axis.startswith("[DemoFusion]")]
    assert fields
    assert len(axes) > 20
    return [*fields, axes]


@pytest.fixture(scope="module")
def usual(webui: Webui, request: pytest.FixtureRequest) -> dict[str, Result]:
    """Returns the images of a webui that was started without the flags of the tests."""
    if not request.config.getoption("--webui"):
        pytest.skip("this test starts its own webui, which needs --webui DIR")
    known = {entry["model_name"] for entry in webui.call("sd-models")}
    if not known.issuperset(CHECKPOINTS):
        pytest.skip(f"the webui does not have both checkpoints: {', '.join(CHECKPOINTS)}")
    return pictures(webui)


@pytest.mark.parametrize("flags", ["--nowebui --medvram", "--lowvram", "--medvram-sdxl"])
def test_start_flags_do_not_change_the_images_or_the_fields_in_the_api(
    request: pytest.FixtureRequest, tmp_path: Path, webui: Webui, usual: dict[str, Result], flags: str
) -> None:
    with started(Path(request.config.getoption("--webui")), tmp_path, *flags.split()) as other:
        made = pictures(other)
        assert listed(other) == listed(webui)
    for name, result in made.items():
        assert result.digests == usual[name].digests, name
        assert result.infotexts == usual[name].infotexts, name
        if "plain" not in name:
            assert_good(result, *usual[name].sizes)
    for name in CHECKPOINTS:
        assert made[f"{name}, plain again"].digests == made[f"{name}, plain"].digests
