"""Tests flow models in Forge's family: `--webui NEO --checkpoints DIR`, where DIR contains one checkpoint.

`flow_checkpoints.py` makes such checkpoints with random weights. With any other checkpoint these tests are skipped.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from webui.conftest import Result, Webui, facts_or_skip
from webui.test_generate import assert_good
from webui.test_hosts import real_layout

__all__ = ["real_layout"]

pytestmark = [pytest.mark.webui, pytest.mark.slow]

ON: dict[str, Any] = {"enabled": True, "scale": 2, "view_batch": 16, "overlap": 0, "jitter": False}
SMALL = {"width": 128, "height": 128, "steps": 3, "sampler_name": "Euler", "scheduler": "Simple", "cfg_scale": 1}
TWICE = (256, 256)
LAST_BIT = 2e-5
"""The largest difference of two latents, relative to the largest value. The guidance adds in another order."""


@pytest.fixture(scope="module")
def family(webui: Webui) -> dict[str, Any]:
    """Returns the extension's facts about the checkpoint, which the first image loads."""
    small(webui, None)
    found: dict[str, Any] = facts_or_skip(webui, "family")
    if not found["flow"]:
        pytest.skip(f"{found['name']} is no flow model")
    return found


def small(webui: Webui, demofusion: Any = ON, **request: Any) -> Result:
    return webui.generate(demofusion, **{**SMALL, "distilled_cfg_scale": 3.5, **request})


@pytest.mark.parametrize("sampler", ["Euler", "Euler a", "DPM++ 2M"])
@pytest.mark.parametrize("cfg_scale", [1, 4])
def test_a_stage_of_one_view_is_the_webuis_own_img2img(webui: Webui, family: Any, sampler: str, cfg_scale: int) -> None:
    """Both begin from the same noise at the same level. The skip residual and the dilated path have no weight."""
    result = small(webui, None, prompt="a circle ONEVIEW", sampler_name=sampler, cfg_scale=cfg_scale)
    differs, reaches = (
        float(re.findall(f"One view {word}: ([-+.e0-9]+)", result.infotexts[0])[0])
        for word in ("differs by", "reaches")
    )
    assert differs <= LAST_BIT * reaches


@pytest.mark.parametrize("cfg_scale", [1, 4])
def test_same_seed_same_bytes_and_plain_pictures_as_without(webui: Webui, family: Any, cfg_scale: int) -> None:
    before = small(webui, None, cfg_scale=cfg_scale)
    first, second = (small(webui, cfg_scale=cfg_scale) for _ in range(2))
    assert_good(first, TWICE)
    assert first.digests == second.digests
    assert small(webui, None, cfg_scale=cfg_scale).digests == before.digests


def test_views_at_once_are_views_one_by_one(webui: Webui, family: Any) -> None:
    at_once, alone = (np.asarray(small(webui, {**ON, "view_batch": n}).images[0], int) for n in (16, 1))
    assert np.abs(at_once - alone).max() <= 2


def test_sizes_are_multiples_of_the_models_unit(webui: Webui, family: Any) -> None:
    result = small(webui, {**ON, "scale": 1.55})
    assert "DemoFusion error" not in result.infotexts[0]
    assert all(side % family["unit"] == 0 and 190 <= side <= 208 for side in result.sizes[0])
    assert "DemoFusion note" in result.infotexts[0]


def test_a_batch_is_its_pictures_alone(webui: Webui, family: Any) -> None:
    both = small(webui, batch_size=2)
    assert_good(both, TWICE, TWICE)
    alone = small(webui, seed=2)
    assert np.abs(np.asarray(both.images[1], int) - np.asarray(alone.images[0], int)).max() <= 2


@pytest.mark.parametrize("sampler", ["DDIM", "PLMS", "Restart", "Kohaku LoNyu Yog", "UniPC"])
def test_samplers_that_are_wrong_on_flow_models_are_refused(webui: Webui, family: Any, sampler: str) -> None:
    if sampler not in [entry["name"] for entry in webui.call("samplers")]:
        pytest.skip("this webui has no such sampler")
    result = small(webui, sampler_name=sampler)
    assert f"does not work with the sampler {sampler}" in result.infotexts[0]
    assert result.sizes == [(128, 128)]


@pytest.mark.parametrize("preset", ["Balanced", "Turbo"])
def test_presets(webui: Webui, family: Any, preset: str) -> None:
    """At a CFG scale of 1 the preset does not change, because the number of steps is too high for a few-step model."""
    result = small(webui, {"enabled": True, "scale": 2, "preset": preset}, steps=12 if preset == "Balanced" else 4)
    assert_good(result, TWICE)
    assert f"DemoFusion preset: {preset}" in result.infotexts[0]
