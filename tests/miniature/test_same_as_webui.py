"""Compares images of the stand-in (trial/webui), which replaces the webui in tests, with images of a running webui.

Both use the small trained model of this repository.

`python try_demofusion.py --webui DIR` installs the model in the webui and starts the webui. Then run these tests with
`--webui-url URL`.
"""

from __future__ import annotations

import base64
import io
import json
import urllib.request
from typing import Any

import numpy as np
import pytest
from in_process import Webui
from modules import sd_samplers
from PIL import Image

from trial import small_model

pytestmark = pytest.mark.webui

JOB = {"prompt": "a ladybug on moss", "negative_prompt": "the sky", "steps": 6, "seed": 5, "cfg_scale": 3.0}


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    """Sends a request to the webui, and returns its JSON answer."""
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def url(request: pytest.FixtureRequest) -> str:
    """Returns the address of the running webui. Skips the tests if this webui does not have the small trained model."""
    url = request.config.getoption("--webui-url")
    if not url:
        pytest.skip("no running webui: pass the address of one with --webui-url URL")
    title = small_model.CHECKPOINT.name
    if not any(entry["title"].startswith(title) for entry in ask(f"{url}/sdapi/v1/sd-models")):
        pytest.skip(f"the webui has no {title}: run python try_demofusion.py --webui DIR --install-only")
    return url


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Webui:
    """Returns the stand-in with the small trained model."""
    return Webui(tmp_path_factory.mktemp("same"), small_model.load(small_model.CHECKPOINT))


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("sampler", list(sd_samplers.all_samplers_map))
def test_images_of_stand_in_and_webui_are_equal_up_to_rounding(
    url: str, trained: Webui, sampler: str, enabled: bool
) -> None:
    """The images have values from 0 to 255. Different rounding may change them by a few levels in a few pixels."""
    settings = {"enabled": enabled, "scale": 2}
    sized = {**JOB, "width": 128, "height": 128, "sampler_name": sampler}
    body = {
        **sized,
        "alwayson_scripts": {"DemoFusion Hires": {"args": [settings]}},
        "override_settings": {"sd_model_checkpoint": small_model.CHECKPOINT.name},
    }
    theirs = Image.open(io.BytesIO(base64.b64decode(ask(f"{url}/sdapi/v1/txt2img", body)["images"][0])))
    ours = trained.job(settings, **sized).images[0]
    assert ours.size == theirs.size
    difference = np.abs(np.asarray(ours, int) - np.asarray(theirs.convert("RGB"), int))
    assert difference.mean() < 0.05
    assert difference.max() <= 3
