"""What is built into every webui, or into one of them, and acts while a stage runs: `--webui DIR --checkpoints DIR`."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image
from webui.conftest import Webui, png
from webui.test_generate import assert_good
from webui.test_hosts import ON, TWICE, built_in, real_layout, small, upload

pytestmark = [pytest.mark.webui, pytest.mark.slow]

__all__ = ["real_layout", "upload"]

GUIDANCE: dict[str, list[Any]] = {
    "DynamicThresholding (CFG-Fix) Integrated": [True],
    "LatentModifier Integrated": [True],
    "PerturbedAttentionGuidance Integrated": [True],
    "Mahiro CFG for reForge": [True],
    '"APG\'s now your CFG" and Guidance Limiter': [True],
    "RescaleCFG for reForge": [True],
    "RescaleCFG": [0.7],
    "MaHiRo": [True],
}
"""Other ways to put cond and uncond together, by the beginnings of their titles, and what switches them on."""

FLOW = {"Advanced Model Sampling for reForge": {"args": [True, "SD3"]}}


def test_a_plot_over_one_of_our_axes(webui: Webui) -> None:
    plot = next(entry for entry in webui.call("script-info") if entry["name"] == "x/y/z plot")
    args = [control.get("value") for control in plot["args"]]
    labels = [control.get("label") for control in plot["args"]]
    args[0:2] = [plot["args"][0]["choices"].index("[DemoFusion] Upscale by"), "1.5,2"]
    args[3], args[6] = 0, 0
    args[labels.index("Include Sub Images")] = True
    result = small(webui, {"enabled": True, "view_batch": 16}, script_name="x/y/z plot", script_args=args)
    assert sorted(result.sizes)[:2] == [(96, 96), TWICE]
    for size, text in zip(result.sizes, result.infotexts):
        assert "DemoFusion error" not in text
        assert size != (96, 96) or "DemoFusion scale: 1.5" in text


def test_progress_and_previews_while_a_stage_runs(webui: Webui) -> None:
    """The bar goes forward only, names the stage, and a picture of the stage is shown before it is done."""
    before = webui.call("options")
    settings = {"live_previews_enable": True, "show_progress_every_n_steps": 1, "show_progress_type": "RGB"}
    if "RGB" not in str(before["show_progress_type"]):
        settings["show_progress_type"] = "Approx cheap"
    webui.call("options", settings)
    plain = small(webui)
    job = threading.Thread(target=small, args=(webui, {**ON, "view_batch": 1}))
    seen: list[dict[str, Any]] = []
    try:
        job.start()
        while job.is_alive():
            seen.append(webui.call("progress?skip_current_image=false"))
            time.sleep(0.2)
    finally:
        job.join()
        webui.call("options", {name: before[name] for name in settings})
    in_stage = [one for one in seen if "DemoFusion" in str(one["textinfo"])]
    shares = [one["progress"] for one in in_stage]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] <= 1
    assert len({one["current_image"] for one in in_stage} - {None}) > 1
    assert small(webui).digests == plain.digests


def test_other_guidance_acts_in_the_stages(webui: Webui) -> None:
    plain = small(webui)
    for title, script in built_in(webui, GUIDANCE).items():
        result = small(webui, more_scripts=script)
        assert_good(result, TWICE)
        assert result.digests != plain.digests, title
    assert small(webui).digests == plain.digests


def test_multidiffusion_is_refused_where_it_is_offered(webui: Webui, upload: Image.Image) -> None:
    """In one webui that is img2img alone."""
    title = "MultiDiffusion Integrated"
    if title.lower() not in webui.call("scripts")["img2img"]:
        pytest.skip("this webui has none")
    request = {"path": "img2img", "init_images": [png(upload)], "denoising_strength": 0.6}
    redrawn = {**ON, "img2img_first": True}
    result = small(webui, redrawn, **request, more_scripts={title: {"args": [True]}})
    assert f"does not work with {title}" in result.infotexts[0]
    assert result.sizes == [(64, 64)]


def test_soft_inpainting_keeps_what_lies_outside(webui: Webui, upload: Image.Image) -> None:
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


def test_sampling_by_flow_is_refused_by_name(webui: Webui) -> None:
    """Last in this file: the webui samples so from then on, until the checkpoint is loaded again."""
    if not built_in(webui, {title: script["args"] for title, script in FLOW.items()}):
        pytest.skip("this webui has no such script")
    result = small(webui, more_scripts=FLOW)
    assert "does not work with Advanced Model Sampling" in result.infotexts[0]
    assert result.sizes == [(64, 64)]
