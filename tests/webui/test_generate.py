"""Tests images that a real webui generates through its API."""

from __future__ import annotations

import base64
import io
import re
import threading
import time
import urllib.error
from typing import Any

import numpy as np
import pytest
from PIL import Image
from webui.conftest import Result, Webui, png

from lib_demofusion.settings.fields import NAMES, Settings

pytestmark = pytest.mark.webui

ON: dict[str, Any] = {"enabled": True, "view_batch": 16}
SAMPLERS = """
DPM++ 2M|DPM++ SDE|DPM++ 2M SDE|DPM++ 2M SDE Heun|DPM++ 2S a|DPM++ 3M SDE|Euler a|Euler|LMS|Heun|
DPM2|DPM2 a|DPM fast|DPM adaptive|Restart|DDIM|DDIM CFG++|PLMS|UniPC|LCM
""".replace("\n", "").split("|")
SCHEDULERS = """
Automatic|Uniform|Karras|Exponential|Polyexponential|SGM Uniform|KL Optimal|Align Your Steps|Simple|Normal|DDIM|Beta
""".replace("\n", "").split("|")


NEUTRAL = ({"override_settings": {"randn_source": "CPU"}}, {"override_settings": {"batch_cond_uncond": False}})
"""Fields of a request that must not change the image on a CPU."""


def assert_good(result: Result, *sizes: tuple[int, int]) -> None:
    """Asserts that the images have these sizes and are not uniform, and that DemoFusion made them.

    The infotexts must contain the version of DemoFusion, and neither an error nor a stop.
    """
    assert result.sizes == list(sizes)
    for image, text in zip(result.images, result.infotexts):
        assert np.asarray(image).std() > 5
        assert "DemoFusion: " in text
        assert "DemoFusion error" not in text
        assert "DemoFusion stopped" not in text


def difference(a: Image.Image, b: Image.Image) -> int:
    """Returns the largest difference between two pixel values (0 to 255) of the images."""
    return int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max())


def test_every_sampler_and_scheduler_is_tested(webui: Webui) -> None:
    assert {entry["name"] for entry in webui.call("samplers")} <= set(SAMPLERS)
    assert {entry["label"] for entry in webui.call("schedulers")} <= set(SCHEDULERS)


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_gives_an_image(webui: Webui, sampler: str, scale: int) -> None:
    """At 2x, a second request gives the same image."""
    request = {"sampler_name": sampler}
    first = webui.generate({**ON, "scale": scale}, **request)
    assert_good(first, (128 * scale, 128 * scale))
    if scale == 2:
        assert webui.generate({**ON, "scale": scale}, **request).digests == first.digests


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_scheduler_gives_an_image(webui: Webui, scheduler: str) -> None:
    request = {"sampler_name": "DPM++ 2M", "scheduler": scheduler}
    assert_good(webui.generate({**ON, "scale": 2}, **request), (256, 256))


@pytest.mark.parametrize("size", [(256, 256), (256, 384), (320, 256), (264, 264), (512, 384)])
@pytest.mark.parametrize("scale", [1.5, 2, 2.5])
def test_the_size_is_rounded_to_multiples_of_8_pixels(webui: Webui, size: tuple[int, int], scale: float) -> None:
    width, height = size
    result = webui.generate({**ON, "scale": scale, "view_batch": 4}, width=width, height=height, steps=2)
    assert_good(result, tuple(int(n * scale / 8 + 0.5) * 8 for n in size))


def test_a_final_size_with_another_aspect_ratio(webui: Webui) -> None:
    assert_good(webui.generate({**ON, "width": 384, "height": 160}, steps=2), (384, 160))


def test_images_of_the_listed_stages_are_returned(webui: Webui) -> None:
    result = webui.generate({**ON, "stages": "1,1.5,2", "return_stages": True}, steps=2)
    assert result.sizes == [(256, 256), (128, 128), (192, 192)]
    assert "DemoFusion stage: base image" in result.infotexts[1]
    assert "DemoFusion size: 192 x 192" in result.infotexts[2]


def test_images_of_a_batch_equal_single_images(webui: Webui) -> None:
    batch = webui.generate({**ON, "scale": 2}, batch_size=2, n_iter=2, do_not_save_grid=True)
    pictures = batch.images[-4:]
    for i, picture in enumerate(pictures):
        alone = webui.generate({**ON, "scale": 2}, seed=1 + i).images[0]
        assert difference(picture, alone) <= 1


@pytest.mark.parametrize(
    "request_",
    [
        {"subseed": 5, "subseed_strength": 0.4},
        {"override_settings": {"randn_source": "CPU"}},
        {"override_settings": {"randn_source": "NV"}},
        {"prompt": "[a cat:a dog:0.5] AND a tree:0.7"},
        {"cfg_scale": 1},
        {"s_min_uncond": 3.0},
        {"sampler_name": "DPM++ 2M SDE", "batch_size": 2},
        {"sampler_name": "Euler", "s_churn": 5.0},
        {"eta": 0.7, "sampler_name": "DDIM"},
        {"override_settings": {"batch_cond_uncond": False}},
        {"prompt": " ".join(["word"] * 100)},
    ],
    ids=lambda request: next(iter(request)) if isinstance(request, dict) else None,
)
def test_a_repeated_request_gives_the_same_image_and_its_fields_have_an_effect(
    webui: Webui, request_: dict[str, Any]
) -> None:
    first = webui.generate({**ON, "scale": 2}, **request_)
    second = webui.generate({**ON, "scale": 2}, **request_)
    assert first.digests == second.digests
    plain = webui.generate({**ON, "scale": 2})
    assert (first.digests[-1] != plain.digests[-1]) == (request_ not in NEUTRAL)


def test_a_disabled_extension_changes_no_image(webui: Webui) -> None:
    plain = webui.generate()
    webui.generate({**ON, "scale": 2})
    assert webui.generate().digests == plain.digests
    assert webui.generate({"enabled": False, "scale": 4}).digests == plain.digests
    assert "DemoFusion" not in plain.infotexts[0]


@pytest.fixture(scope="module")
def upload(webui: Webui) -> Image.Image:
    return webui.generate(seed=9).images[0]


def test_img2img_upscales_the_upload_or_the_redrawn_image(webui: Webui, upload: Image.Image) -> None:
    """FAULT:0:1:16 makes every sampling at the size of the upload fail. Only redrawing needs such a sampling."""
    request = {"path": "img2img", "init_images": [png(upload)], "denoising_strength": 0.5}
    base_fails = {**request, "prompt": "a red circle FAULT:0:1:16"}
    kept = webui.generate({**ON, "scale": 2}, **base_fails)
    assert_good(kept, (256, 256))
    with pytest.raises(urllib.error.HTTPError):
        webui.generate({**ON, "scale": 2, "img2img_first": True}, **base_fails)
    redrawn = webui.generate({**ON, "scale": 2, "img2img_first": True}, **request)
    assert_good(redrawn, (256, 256))
    plain = webui.generate(**request)
    assert webui.generate(**request).digests == plain.digests


def test_an_error_in_a_stage_returns_the_previous_image(webui: Webui) -> None:
    """The word FAULT in the prompt makes model calls fail (faults/scripts/demofusion_test_faults.py).

    FAULT:2:48:99 lets the second stage fail after two calls, because its latent is 48 cells high. FAULT:0:32:99 lets
    the first stage fail at once.
    """
    plain = webui.generate()
    faulty = {"prompt": "a red circle FAULT:2:48:99"}
    result = webui.generate({**ON, "scale": 3}, **faulty)
    assert result.sizes == [(256, 256)]
    assert re.search(r'DemoFusion error: "stage 2 of 2 \(384x384\) failed.*planned fault', result.infotexts[0])
    base = webui.generate({**ON, "scale": 2}, prompt="a red circle FAULT:0:32:99")
    assert base.sizes == [(128, 128)]
    assert base.digests == webui.generate(prompt="a red circle FAULT:0:32:99").digests
    assert webui.generate().digests == plain.digests


@pytest.mark.parametrize("action", ["interrupt", "skip"])
def test_an_interrupt_returns_the_last_finished_stage(webui: Webui, action: str) -> None:
    plain = webui.generate()
    results: list[Result] = []
    request = {**ON, "scale": 3, "view_batch": 1}
    thread = threading.Thread(target=lambda: results.append(webui.generate(request, steps=10)))
    thread.start()
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        progress = webui.call("progress?skip_current_image=true")
        if (progress["textinfo"] or "").startswith("DemoFusion 2/2 384x384"):
            break
        time.sleep(0.05)
    started = time.monotonic()
    webui.call(action, {})
    thread.join(60)
    assert time.monotonic() - started < 20
    assert results[0].sizes == [(256, 256)]
    assert "DemoFusion stopped" in results[0].infotexts[0]
    assert webui.generate().digests == plain.digests
    assert webui.call("progress?skip_current_image=true")["textinfo"] is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scale", 0),
        ("scale", float("nan")),
        ("scale", "big"),
        ("scale", None),
        ("stages", "1,3,2"),
        ("tile_size", 4000),
        ("tile_size", 40),
        ("tile_stride", 30),
        ("sigma", -1),
        ("width", 64),
        ("jitter", "perhaps"),
        ("preset", "None such"),
        ("no_such_field", 1),
    ],
)
def test_bad_input_is_reported_in_the_result(webui: Webui, field: str, value: Any) -> None:
    result = webui.generate({"enabled": True, field: value}, steps=1)
    if value is None:
        # a field with this value counts as missing
        assert_good(result, (256, 256))
        return
    assert result.sizes == [(128, 128)]
    message = re.search(r'DemoFusion error: "?([^"]*)', result.infotexts[0])
    assert message
    assert field in message[1]
    assert ". Use " in message[1]


def test_positional_arguments_can_be_fewer_or_more_than_the_fields(webui: Webui) -> None:
    assert_good(webui.generate([True, "Paper", "Latent", 0, 1, 1.5], steps=2), (192, 192))
    every_field = [ON.get(name, getattr(Settings, name)) for name in NAMES]
    assert_good(webui.generate([*every_field, "more", 7], steps=2), (256, 256))


def test_infotext_reproduces_the_image(webui: Webui) -> None:
    settings = {
        "scale": 1.5,
        "stages": "1,1.5",
        "tile_size": 12,
        "tile_stride": 8,
        "cosine_scale_1": 2.5,
        "jitter": False,
        # an infotext does not restore view_batch, and another batch size would change the last bits of the image
        "view_batch": 0,
    }
    first = webui.generate({**ON, **settings, "denoising_strength": 0.5})
    body = {"infotext": first.infotexts[0]}
    again = webui.call("txt2img", body)
    assert len(again["images"]) == 1
    picture = Image.open(io.BytesIO(base64.b64decode(again["images"][0])))
    assert difference(picture, first.images[0]) == 0
