"""Tests features that are built into webuis of Forge's family. The features work in the stages or are refused.

See test_hosts.py for the command.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from webui.conftest import Webui, facts_or_skip, png
from webui.test_generate import assert_good
from webui.test_hosts import TWICE, real_layout, small, upload

__all__ = ["real_layout", "upload"]

pytestmark = [pytest.mark.webui, pytest.mark.slow]

COMPATIBLE: dict[str, list[Any]] = {
    "FreeU Integrated": [True],
    "Kohya HRFix Integrated": [True, 1, 2.0, 0.0, 1.0],
    "HyperTile Integrated": [True, 32],
}
"""Scripts that work together with DemoFusion, by the start of their titles, with arguments that enable them."""

NEEDS_A_WIDE_MODEL = "FreeU Integrated"
"""FreeU changes only blocks that are as wide as in a real UNet, so it may have no effect on these small models."""

REFUSED: dict[str, list[Any]] = {
    "MultiDiffusion Integrated": [True],
    "SelfAttentionGuidance Integrated": [True],
    "StyleAlign Integrated": [True],
}
"""Scripts that DemoFusion refuses, by the start of their titles, with arguments that enable them."""

GUIDANCE: dict[str, list[Any]] = {
    "DynamicThresholding (CFG-Fix) Integrated": [True],
    "LatentModifier Integrated": [True, 20.0],
    "PerturbedAttentionGuidance Integrated": [True],
    "Mahiro CFG for reForge": [True],
    '"APG\'s now your CFG" and Guidance Limiter': [True],
    "RescaleCFG for reForge": [True],
    "RescaleCFG": [0.7],
    "MaHiRo": [True],
}
"""Scripts that change the guidance, by the start of their titles, with arguments that enable them."""

FLOW: dict[str, list[Any]] = {"Advanced Model Sampling for reForge": [True, "SD3"]}
"""The script with which reForge samples any model as a flow model."""


def built_in(webui: Webui, titles: dict[str, list[Any]], tab: str = "txt2img") -> dict[str, Any]:
    """Maps the titles of scripts that this webui has in the tab to the entries of `alwayson_scripts` that enable them.

    Skips the test if the webui has none of the scripts.
    """
    known = webui.call("scripts")[tab]
    full = {title: next((name for name in known if name.startswith(title.lower())), None) for title in titles}
    found = {title: {name: {"args": titles[title]}} for title, name in full.items() if name}
    if not found:
        pytest.skip(f"this webui has none of these scripts in {tab}: {', '.join(titles)}")
    return found


def test_compatible_scripts_have_an_effect_in_the_stages(webui: Webui) -> None:
    scripts, plain = built_in(webui, COMPATIBLE), small(webui)
    for title, script in scripts.items():
        result = small(webui, more_scripts=script)
        assert_good(result, TWICE)
        assert result.digests != plain.digests or title == NEEDS_A_WIDE_MODEL, title


def test_incompatible_scripts_are_refused_by_name(webui: Webui) -> None:
    """The images are larger than elsewhere, because some scripts fail with small images even without DemoFusion."""
    for title, script in built_in(webui, REFUSED).items():
        result = small(webui, more_scripts=script, width=128, height=128)
        assert f"does not work with {title}" in result.infotexts[0]
        assert result.sizes == [TWICE]


def test_multidiffusion_is_refused_in_img2img(webui: Webui, upload: Image.Image) -> None:
    """Forge Neo has MultiDiffusion in img2img only."""
    for title, script in built_in(webui, {"MultiDiffusion Integrated": [True]}, "img2img").items():
        request = {"path": "img2img", "init_images": [png(upload)], "denoising_strength": 0.6}
        result = small(webui, **request, more_scripts=script)
        assert f"does not work with {title}" in result.infotexts[0]
        assert result.sizes == [(64, 64)]


def test_pid_is_refused(webui: Webui) -> None:
    """Forge Neo offers PiD only if a checkpoint has "pid" in its name. `hosts.prepare` creates one."""
    for script in built_in(webui, {"PiD Integrated": [True]}).values():
        result = small(webui, more_scripts=script)
        assert "does not work with PiD Integrated" in result.infotexts[0]
        assert result.sizes[0] == (64, 64)
        assert_good(small(webui), TWICE)


REFUSED_ENGINES = {"StableDiffusionXLRefiner", "Wan", "PiD"}


def test_every_engine_is_supported_or_refused(webui: Webui) -> None:
    """If this fails for a new engine class of the webui, add the class to the table in host/backends/families.py."""
    engines: dict[str, bool] = facts_or_skip(webui, "engines")
    assert {name for name, supported in engines.items() if not supported} == REFUSED_ENGINES & set(engines)
    assert len(engines) > 5


def test_scripts_that_change_the_guidance_have_an_effect_in_the_stages(webui: Webui) -> None:
    scripts, plain = built_in(webui, GUIDANCE), small(webui)
    for title, script in scripts.items():
        result = small(webui, more_scripts=script)
        assert_good(result, TWICE)
        assert result.digests != plain.digests, title
    assert small(webui).digests == plain.digests


def test_soft_inpainting_keeps_the_area_outside_the_mask(webui: Webui, upload: Image.Image) -> None:
    mask = Image.new("L", upload.size, 0)
    mask.paste(255, (40, 40, 64, 64))
    request = {"path": "img2img", "init_images": [png(upload)], "mask": png(mask), "denoising_strength": 0.7}
    soft = {"Soft Inpainting": {"args": [True]}}
    result = small(webui, **request, inpaint_full_res=False, more_scripts=soft)
    assert "Soft inpainting enabled: True" in result.infotexts[0]
    assert_good(result, TWICE)
    enlarged = upload.resize(TWICE, Image.Resampling.LANCZOS)
    away = np.abs(np.asarray(result.images[0].convert("RGB"), int) - np.asarray(enlarged, int)).mean(axis=2)
    assert away[:24, :24].mean() < 6
    assert away[96:, 96:].mean() > 2 * away[:24, :24].mean()


def test_advanced_model_sampling_of_reforge_is_refused(webui: Webui) -> None:
    """This test must be the last in the file, because the webui samples in this mode until a checkpoint is loaded."""
    (script,) = built_in(webui, FLOW).values()
    result = small(webui, more_scripts=script)
    # the message names the script or the changed model, whichever is detected first
    assert "does not work with" in result.infotexts[0]
    assert "flow" in result.infotexts[0]
    assert result.sizes == [(64, 64)]
