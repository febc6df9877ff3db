"""Tests that features are refused if they cannot work with a flow model. See test_hosts_flow.py for the command.

A refused job returns the webui's own image. The message names the feature. The next job is not affected.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from webui.conftest import Result, Webui, facts_or_skip, png
from webui.flow_families import NO_REFERENCE, family, linked, small, webui
from webui.test_api_and_scripts import options

__all__ = ["family", "webui"]

pytestmark = [pytest.mark.webui, pytest.mark.slow]

PICTURE = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
IMG2IMG = {"path": "img2img", "init_images": [png(PICTURE)], "denoising_strength": 0.6}


def assert_refused(result: Result, reason: str) -> None:
    assert f"does not work with {reason}" in result.infotexts[0]
    assert result.sizes == [(64, 64)]


@pytest.mark.parametrize("family", ["schnell", "qwen", "ernie"], indirect=True)
@pytest.mark.parametrize("word", ["CACHEWRAPPER", "CACHEFORWARD"])
def test_step_caches_are_refused(webui: Webui, family: Any, word: str) -> None:
    """The job is refused, but not the cache: the image is the same as in a job with the cache and without DemoFusion.

    `word` is the word in the prompt that enables a cache (demofusion_test_caches.py).
    """
    plain = small(webui)
    cached = small(webui, None, prompt=f"a red circle {word}")
    result = small(webui, prompt=f"a red circle {word}")
    # the message begins with the name of the script or extension. The test checks this name only for the wrapper
    name = "demofusion_test_caches" if word == "CACHEWRAPPER" else ""
    assert_refused(result, name)
    assert "it computes a step from earlier steps" in result.infotexts[0]
    assert result.digests == cached.digests
    assert small(webui).digests == plain.digests


@pytest.mark.parametrize("family", ["anima"], indirect=True)
@pytest.mark.parametrize("path", ["txt2img", "img2img"])
def test_a_cache_that_is_recognized_by_its_infotext_is_refused(webui: Webui, family: Any, path: str) -> None:
    """MARKER makes a test extension write the infotext entry of Anima TeaCache before each sampling.

    In img2img, the first sampling is that of a stage.
    """
    result = small(webui, prompt="a tree MARKER", **(IMG2IMG if path == "img2img" else {}))
    assert "Anima TeaCache: it computes a step from earlier steps" in result.infotexts[0]
    assert result.sizes == [(64, 64)]


@pytest.mark.parametrize("family", ["schnell", "qwen"], indirect=True)
def test_the_cache_of_nunchaku_is_refused(webui: Webui, family: Any) -> None:
    plain = small(webui)
    facts_or_skip(webui, "nunchaku?on=true")
    try:
        with options(webui, svdq_cache_threshold=0.12):
            assert_refused(small(webui), "Nunchaku's Cache Threshold above 0")
        assert small(webui).digests == plain.digests
    finally:
        facts_or_skip(webui, "nunchaku?on=false")
    with options(webui, svdq_cache_threshold=0.12):
        assert small(webui).digests == plain.digests


@pytest.mark.parametrize("family", ["chroma"], indirect=True)
def test_sigma_churn_is_refused(webui: Webui, family: Any) -> None:
    plain = small(webui)
    with options(webui, s_churn=0.5):
        assert_refused(small(webui), "Sigma churn on flow models")
    assert small(webui).digests == plain.digests


REFERENCES = ("image stitch", "imagestitch integrated", "多图参考")
"""Lower-case titles of the script for reference images in different versions of Forge Neo."""


def with_references(webui: Webui) -> dict[str, Any]:
    """Returns the entry of `alwayson_scripts` that enables the script for reference images, with one image."""
    name = next((name for name in webui.call("scripts")["txt2img"] if name.lower() in REFERENCES), None)
    if name is None:
        pytest.skip("this webui has no reference images in txt2img")
    return {name: {"args": [True, [png(PICTURE)], 256]}}


@pytest.mark.parametrize("family", ["klein", "krea"], indirect=True)
def test_reference_images_in_txt2img_are_refused(webui: Webui, family: Any) -> None:
    plain = small(webui)
    with options(webui, **{NO_REFERENCE: False}):
        result = small(webui, more_scripts=with_references(webui))
        assert_refused(result, f"reference images of {family['name']}")
        assert "; remove them" in result.infotexts[0]
        # the script removes its reference images in the next job that does not use the script
        small(webui, None)
    assert small(webui).digests == plain.digests


@pytest.mark.parametrize("family", ["qwen"], indirect=True)
@pytest.mark.parametrize("path", ["txt2img", "img2img"])
def test_qwen_image_edit_is_refused_only_with_reference_images(webui: Webui, family: Any, path: str) -> None:
    """The webui recognizes Qwen-Image-Edit only by the file name, so a second name of the Qwen-Image file is enough."""
    flow, plain = webui.call("options")["sd_model_checkpoint"], small(webui)
    request = IMG2IMG if path == "img2img" else {"more_scripts": with_references(webui)}
    with linked(webui, "qwen.safetensors", "demofusion-test-qwen-edit.safetensors") as name:
        edit = {"sd_model_checkpoint": name}
        result = small(webui, override_settings=edit, **request)
        small(webui, None, override_settings=edit)
        without = small(webui, override_settings=edit)
        webui.call("options", {"sd_model_checkpoint": flow})
        small(webui, None)
    assert_refused(result, "reference images of Qwen-Image: every tile would show the whole reference; remove them")
    assert without.digests == plain.digests
    assert small(webui).digests == plain.digests


CONTROL = "demofusion-test-lllite"
LAYER = "lllite_dit_blocks_0_self_attn_q_proj"
WIDTH, INNER = 2048, 64
"""The width of Anima, and the inner width of the control model."""


def write_control(file: Path) -> None:
    """Writes a ControlLLLite for Anima: layers that read the hint, and layers that change one layer of Anima."""
    shapes = {
        "lllite_conditioning1.conv1": (32, 3, 4, 4),
        "lllite_conditioning1.conv2": (32, 32, 3, 3),
        "lllite_conditioning1.conv3": (64, 32, 4, 4),
        "lllite_conditioning1.proj": (32, 64, 1, 1),
        f"{LAYER}.down": (INNER, WIDTH),
        f"{LAYER}.mid": (INNER, INNER + 32),
        f"{LAYER}.cond_to_film": (2 * INNER, 32),
        f"{LAYER}.up": (WIDTH, INNER),
    }
    drawn = torch.Generator().manual_seed(1)
    state = {f"{name}.weight": torch.randn(shape, generator=drawn) / shape[1] ** 0.5 for name, shape in shapes.items()}
    state |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
    for norm, width in {"norm1": 32, "norm2": 32, "norm3": 64, "out_norm": 32}.items():
        state[f"lllite_conditioning1.{norm}.weight"] = torch.ones(width)
        state[f"lllite_conditioning1.{norm}.bias"] = torch.zeros(width)
    state[f"{LAYER}.depth_embed"] = torch.zeros(32)
    save_file(state, file)


@contextmanager
def control_model(webui: Webui) -> Iterator[str]:
    """Adds the control model to the webui's list of control models, and yields the name in this list."""
    folder = Path(facts_or_skip(webui, "control-folder"))
    file = folder / f"{CONTROL}.safetensors"
    write_control(file)
    try:
        facts_or_skip(webui, "control-folder")
        names = webui.call("model_list", under="controlnet")["model_list"]
        yield next(name for name in names if name.startswith(CONTROL))
    finally:
        file.unlink()


@pytest.mark.parametrize("family", ["anima"], indirect=True)
def test_a_control_model_of_a_transformer_is_refused(webui: Webui, family: Any) -> None:
    """The refused job returns the image that the control model gives in a job without DemoFusion."""
    plain, made = small(webui, None), small(webui)
    with control_model(webui) as name:
        unit = {"enabled": True, "module": "None", "model": name, "weight": 1.0, "save_detected_map": False}
        script = {"ControlNet": {"args": [{**unit, "image": png(PICTURE)}]}}
        controlled = small(webui, None, more_scripts=script)
        result = small(webui, more_scripts=script)
    assert controlled.digests != plain.digests
    assert_refused(result, "ControlNet on Anima: DemoFusion cannot crop hints to the tiles for this model; switch")
    assert result.digests == controlled.digests
    assert small(webui).digests == made.digests
