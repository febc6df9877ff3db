"""Tests the behavior that all kinds of webui share: `--webui DIR --checkpoints DIR`.

The images are small and have few steps. test_generate.py and other files test AUTOMATIC1111's webui more thoroughly.
Those files use tiny checkpoints, which the webuis of Forge's family cannot load.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import Image
from webui.conftest import Result, Webui, decoded, interrupted, png, progress_of_stages
from webui.test_generate import assert_good

from lib_demofusion.method.sampler_checks import CALLS_DO_NOT_FIT, NOT_ITS_X
from lib_demofusion.method.stage import OTHER_SIZE
from lib_demofusion.settings.presets import PRESETS

pytestmark = [pytest.mark.webui, pytest.mark.slow]

ON: dict[str, Any] = {"enabled": True, "scale": 2, "view_batch": 16}
LEAN: dict[str, Any] = {**ON, "overlap": 0, "jitter": False}
"""Fields with which a stage has few views.

These fields make the tests of samplers and schedulers faster. Some webuis have a hundred samplers and schedulers.
"""
SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 3, "sampler_name": "Euler"}
TWICE = (128, 128)
"""The size of SMALL at 2x."""


@pytest.fixture(autouse=True)
def real_layout(request: pytest.FixtureRequest) -> None:
    """Skips the test if the webui would get the tiny checkpoints."""
    if not request.config.getoption("--checkpoints") and not request.config.getoption("--webui-url"):
        pytest.skip("needs a checkpoint with the layout of a real model: pass --checkpoints DIR or --webui-url URL")


@pytest.fixture(scope="module")
def upload() -> Image.Image:
    squares = np.random.default_rng(1).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(squares.repeat(8, axis=0).repeat(8, axis=1))


def small(webui: Webui, demofusion: Any = ON, **request: Any) -> Result:
    """Generates a small image: with DemoFusion by default, or without it if `demofusion` is None."""
    return webui.generate(demofusion, **{**SMALL, **request})


SAMPLER_REFUSALS = (OTHER_SIZE, NOT_ITS_X, CALLS_DO_NOT_FIT, "does not work with the sampler")
"""Parts of the messages with which the extension refuses a sampler."""

Run = Callable[[str, Any], Result]
"""A function that generates an image with a sampler or scheduler of this name, and with DemoFusion's fields or None."""


def failures(names: list[str], run: Run) -> dict[str, str]:
    """Calls `run` with each name, and returns the errors by name.

    The result does not contain names that also fail without DemoFusion, and samplers that the extension refuses. For
    these names, the function only shows a warning.
    """
    problems = {name: problem(partial(run, name, LEAN), TWICE) for name in names}
    found = {name: text for name, text in problems.items() if text}
    for name in list(found):
        alone = problem(partial(run, name, None), (64, 64))
        if alone or any(reason in found[name] for reason in SAMPLER_REFUSALS):
            warnings.warn(f"{name}: {found.pop(name)}, and without DemoFusion: {alone}", stacklevel=2)
    return found


def problem(run: Callable[[], Result], size: tuple[int, int]) -> str | None:
    """Calls `run`, which should return one image of this size. Returns the error, or None if there is no error."""
    try:
        result = run()
    except Exception as error:
        return repr(error)
    # the webui puts a text with a comma or a colon in quotation marks
    error = re.findall('DemoFusion error: (?:"[^"]*"|[^,]*)', result.infotexts[0])
    if error or result.sizes != [size]:
        return f"{result.sizes} {error}"
    # the image of a latent of NaN has one color, and Forge Neo only prints a warning about it
    return "the image has only one color" if np.asarray(result.images[0]).std() < 1 else None


def test_images_are_reproducible_and_unchanged_when_disabled(webui: Webui) -> None:
    before = small(webui, None)
    first, second = small(webui), small(webui)
    assert_good(first, TWICE)
    assert first.digests == second.digests
    assert small(webui, None).digests == before.digests


@pytest.mark.filterwarnings("default::UserWarning")
def test_every_sampler_makes_an_image_or_is_refused(webui: Webui) -> None:
    names = [entry["name"] for entry in webui.call("samplers")]
    assert len(names) > 10
    assert failures(names, lambda name, on: small(webui, on, sampler_name=name)) == {}


CFG_SCALES = (1, 1.5, 7)


@pytest.mark.parametrize("cfg_scale", CFG_SCALES)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_at_every_cfg_scale(webui: Webui, preset: str, cfg_scale: float) -> None:
    """At a CFG scale of 1, Forge and Forge Neo evaluate no negative prompt. The stages must work without it."""
    # few-step models usually run with a low CFG scale
    steps = 12 if cfg_scale > 2 else 4
    on = {"enabled": True, "scale": 2, "view_batch": 16, "preset": preset}
    result = small(webui, on, cfg_scale=cfg_scale, steps=steps)
    assert_good(result, TWICE)


LEAST_EFFECT = 0.25
"""The minimum effect of each of VALUES on the image, as a fraction of its effect with Euler.

In AUTOMATIC1111's webui with random weights, the measured fractions are 0.3 to 1.1 for the skip residual and 0.9 to 2.1
for extra noise. With UniPC in Forge Neo, a bug once kept the stages from changing the x of this sampler. The fractions
were then 0.1 and 0.05.
"""


FEWEST_VIEWS = {**LEAN, "cosine_scale_1": 10, "cosine_scale_2": 0, "skip_views": "0.5,0"}
"""Fields with which a stage at 2x evaluates only its 4 dilated views per step, and not its 4 tiles.

The skip residual has a low weight: 0.2 at timestep 750, and 0.001 at timestep 500. With a high weight, it would replace
most of the extra noise at high noise levels. The replaced amount would depend on the sampler, so the fractions would
not be comparable. For example, UniPC has a step at timestep 749, at which a high weight replaced most of the extra
noise. Euler has no step at this timestep.
"""

VALUES: tuple[dict[str, Any], ...] = ({"cosine_scale_1": 0}, {"extra_noise": 0.2})
"""Fields with a strong effect. With 0 in Cosine scale 1, the skip residual replaces x with the noised anchor."""


@pytest.mark.filterwarnings("default::UserWarning")
def test_residual_and_extra_noise_have_an_effect_in_every_sampler(webui: Webui, upload: Image.Image) -> None:
    names = {entry["name"] for entry in webui.call("samplers")} - {"Euler"}
    known = changed_by_values(webui, upload, "Euler")
    assert known is not None
    changes = {name: changed_by_values(webui, upload, name) for name in sorted(names)}
    shares = {name: [a / b for a, b in zip(change, known)] for name, change in changes.items() if change is not None}
    assert len(shares) > 10
    assert {name: share for name, share in shares.items() if min(share) < LEAST_EFFECT} == {}


def changed_by_values(webui: Webui, upload: Image.Image, sampler: str) -> list[float] | None:
    """Returns the mean change of the pixels (0 to 255) by each of VALUES, or None if the sampler is refused or fails.

    To save time, the upload is the base image, the stage has a scale of 1.5, and only the last three of six steps run.
    With all six steps and random weights, DPM adaptive would need hundreds of model calls. With only two model calls,
    DPM fast would make only one step, and the first step has no skip residual.
    """
    request = {"path": "img2img", "init_images": [png(upload)], "sampler_name": sampler, "steps": 6}
    images: list[Any] = []

    def run(more: dict[str, Any]) -> Result:
        result = small(webui, {**FEWEST_VIEWS, "scale": 1.5, "denoising_strength": 0.5, **more}, **request)
        images.append(np.asarray(result.images[0], float))
        return result

    for more in ({}, *VALUES):
        found = problem(partial(run, more), (96, 96))
        if found:
            warnings.warn(f"{sampler}: {found}", stacklevel=2)
            return None
    plain, *others = images
    return [float(np.abs(other - plain).mean()) for other in others]


@pytest.mark.filterwarnings("default::UserWarning")
def test_every_scheduler_makes_an_image(webui: Webui) -> None:
    names = [entry["label"] for entry in webui.call("schedulers")]
    assert len(names) > 5
    assert failures(names, lambda name, on: small(webui, on, sampler_name="DPM++ 2M", scheduler=name)) == {}


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M SDE", "DDIM"])
def test_images_of_a_batch_equal_single_images(webui: Webui, sampler: str) -> None:
    both = small(webui, sampler_name=sampler, batch_size=2)
    assert_good(both, TWICE, TWICE)
    alone = small(webui, sampler_name=sampler, seed=2)
    difference = np.abs(np.asarray(both.images[1], int) - np.asarray(alone.images[0], int))
    assert difference.max() <= 2


@pytest.mark.parametrize("redraw", [False, True])
def test_img2img_enlarges_the_upload_or_the_redrawn_image(webui: Webui, upload: Image.Image, redraw: bool) -> None:
    request = {"path": "img2img", "init_images": [png(upload)], "denoising_strength": 0.6}
    result = small(webui, {**ON, "img2img_first": redraw, "return_stages": True}, **request)
    assert result.sizes == [TWICE, (64, 64)]
    plain = small(webui, None, **request)
    assert (result.digests[1] == plain.digests[0]) == redraw


@pytest.mark.parametrize("only_masked", [False, True])
def test_inpainting_keeps_the_area_outside_the_mask(webui: Webui, upload: Image.Image, only_masked: bool) -> None:
    mask = Image.new("L", upload.size, 0)
    mask.paste(255, (24, 24, 56, 56))
    request = {"path": "img2img", "init_images": [png(upload)], "mask": png(mask), "mask_blur": 0}
    result = small(webui, **request, inpaint_full_res=only_masked, denoising_strength=0.7)
    assert "DemoFusion error" not in result.infotexts[0]
    picture = result.images[0].convert("RGB")
    scale = picture.width / upload.width
    assert scale > 1.5
    outside = (0, 0, round(16 * scale), round(16 * scale))
    inside = tuple(round(n * scale) for n in (28, 28, 52, 52))
    enlarged = upload.resize(picture.size, Image.Resampling.LANCZOS)

    def change(box: tuple[int, ...]) -> float:
        """Returns the mean difference from the enlarged upload in a box, in color levels from 0 to 255."""
        return float(np.abs(np.asarray(picture.crop(box), float) - np.asarray(enlarged.crop(box), float)).mean())

    assert change(outside) < 6
    assert change(inside) > 2 * change(outside)


def hires_fix(webui: Webui) -> dict[str, Any]:
    """Returns the fields of a request that turn hires fix on.

    Upscalers with a file would need a download, and the names of upscalers can be translated. The function therefore
    chooses the first upscaler that the webui lists without a file. If "None" is the only such upscaler, the function
    chooses "None", which enlarges the image too.
    """
    known = [entry for entry in webui.call("upscalers") if not entry["model_path"]]
    upscaler = next((entry["name"] for entry in known if entry["name"] != "None"), "None")
    # without this field, Forge's API fails, with or without DemoFusion
    modules = {"hr_additional_modules": ["Use same choices"]}
    return {"enable_hr": True, "hr_scale": 2, "hr_upscaler": upscaler, "denoising_strength": 0.7, **modules}


def test_the_result_of_hires_fix_is_enlarged(webui: Webui) -> None:
    # Forge Neo rounds sizes to multiples of 64, so the sizes here are multiples of 64
    result = small(webui, **hires_fix(webui))
    assert_good(result, (256, 256))


def test_prompts_that_change_during_sampling_and_prompts_joined_by_and(webui: Webui) -> None:
    """Three prompts give different images: one changes during sampling, one is constant, and one joins two prompts."""
    made = [small(webui, prompt=prompt) for prompt in ("a [red:green:0.5] tree", "a red tree", "a red tree AND a boat")]
    for result in made:
        assert_good(result, TWICE)
    assert len({result.digests[0] for result in made}) == len(made)


def test_an_interrupt_returns_the_base_image(webui: Webui) -> None:
    plain = small(webui, None)
    stopped = interrupted(webui, lambda: small(webui, {**ON, "scale": 4, "view_batch": 1}))
    assert "DemoFusion stopped" in stopped.infotexts[0]
    assert stopped.digests[0] == plain.digests[0]


def test_an_error_in_a_stage_returns_the_previous_image(webui: Webui) -> None:
    # demofusion_test_faults.py makes the last stage fail after one call, because its latent is 30 to 40 cells high
    prompt = "a tree FAULT:1:30:40"
    plain = small(webui, None, prompt=prompt)
    result = small(webui, {**ON, "scale": 4}, prompt=prompt)
    assert "planned fault" in result.infotexts[0]
    assert result.sizes[0] == (192, 192)
    assert small(webui, None, prompt=prompt).digests == plain.digests


def test_each_cell_of_a_plot_uses_only_its_own_values(webui: Webui) -> None:
    args = webui.plot_args(("Upscale by", "1.5,2", None), ("Enabled", "", ["True", "False"]))
    result = small(webui, {"enabled": False, "view_batch": 16}, script_name="x/y/z plot", script_args=args, steps=2)
    assert sorted(result.sizes[-4:]) == [(64, 64), (64, 64), (96, 96), TWICE]
    for size, text in zip(result.sizes[-4:], result.infotexts[-4:]):
        assert ("DemoFusion" in text) == (size != (64, 64))
        assert "DemoFusion error" not in text


PREVIEWS = {"live_previews_enable": True, "show_progress_every_n_steps": 1, "show_progress_type": "Approx cheap"}


def test_progress_and_previews_of_a_stage(webui: Webui) -> None:
    """The progress bar never goes back, and the previews of the stages show the whole image."""
    before = webui.call("options")
    webui.call("options", PREVIEWS)
    # Forge Neo rounds sizes to multiples of 64, so the sizes here are multiples of 64
    request = {"width": 128, "steps": 6}
    try:
        result, seen = progress_of_stages(webui, partial(small, webui, {**ON, "scale": 3, "view_batch": 2}, **request))
    finally:
        webui.call("options", {name: before[name] for name in PREVIEWS})
    assert_good(result, (384, 192))
    # the webui adds two quotients, so the last bits may vary
    shares = [round(answer["progress"], 9) for answer in seen]
    assert len(set(shares)) > 5
    assert shares == sorted(shares)
    assert shares[0] < 0.5 < shares[-1] <= 1
    shown = [decoded(answer["current_image"]) for answer in seen if answer["current_image"]]
    assert shown
    # when the first stage begins, the webui may still show the preview of the base image
    assert all(picture.width / picture.height == 2 for picture in shown)
    # this preview method makes one pixel per latent cell, so a preview of the base image is 16 pixels wide
    assert shown[-1].width > 128 // 8
