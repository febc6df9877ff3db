"""Tests jobs in the stand-in for the webui (trial/webui), from a request's arguments to the images and infotexts."""

from __future__ import annotations

import functools
import gc
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import k_diffusion.sampling
import numpy as np
import pytest
import torch
from in_process import BASE, Webui, sizes
from modules import infotext_utils, scripts, sd_samplers, sd_samplers_cfg_denoiser, shared
from modules.sd_samplers_cfg_denoiser import CFGDenoiser
from PIL import Image, ImageChops
from reports import Reports

from lib_demofusion.host import backends, stage_loop
from lib_demofusion.host.common import user_presets
from lib_demofusion.host.images import coding, upscaling, vae
from lib_demofusion.host.panel.build import CONTROLS
from lib_demofusion.host.progress import bar as progress
from lib_demofusion.host.progress import timing
from lib_demofusion.method.stage import mix_anchors
from lib_demofusion.settings.fields import SPECS

ON = {"enabled": True, "scale": 2}
THREE = {"enabled": True, "scale": 3, "stages": "every"}
"""Settings for two stages, at 2x and 3x."""


@pytest.fixture
def in_model(webui: Webui) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Returns a function that installs a callback. The callback runs before every model call."""
    unet = webui.small.unet

    def install(function: Callable[[], None]) -> None:
        def watched(*args: Any) -> Any:
            function()
            return unet(*args)

        webui.small.unet = watched

    yield install
    webui.small.__dict__.pop("unet", None)


def in_stage(number: int) -> bool:
    """Returns whether the stage with this number is running. The first stage has the number 1."""
    return (shared.state.textinfo or "").startswith(f"DemoFusion {number}/")


def largest_difference(one: Image.Image, other: Image.Image) -> int:
    """Returns the largest difference between two images in any channel, from 0 to 255."""
    return max(high for _, high in ImageChops.difference(one, other).getextrema())


@pytest.mark.parametrize("sampler", list(sd_samplers.all_samplers_map))
def test_every_sampler_runs_every_stage(webui: Webui, sampler: str) -> None:
    result = webui.job({**THREE, "return_stages": True}, sampler_name=sampler)
    assert sizes(result) == [3 * BASE, BASE, 2 * BASE]


@pytest.mark.parametrize("sampler", ["Euler a", "DDIM"])
def test_the_base_image_is_returned_if_the_webui_does_not_call_the_object_that_evaluates_views(
    webui: Webui, monkeypatch: pytest.MonkeyPatch, sampler: str, reported: Reports
) -> None:
    """The extension replaces the model by an object that evaluates views. Some webuis may not call this object.

    Then the webui's own model evaluates the whole latent at once. The result has the expected shape, but is wrong.
    """
    reported.expect("did not evaluate the tiles of DemoFusion")
    plain = webui.job(sampler_name=sampler)

    def forward(self: Any, x: torch.Tensor, sigma: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        own, self.__class__ = type(self), webui_class(type(self))
        try:
            return real(self, x, sigma, *args, **kwargs)
        finally:
            self.__class__ = own

    real = CFGDenoiser.forward
    monkeypatch.setattr(CFGDenoiser, "forward", forward)
    result = webui.job(ON, sampler_name=sampler)
    assert sizes(result) == [BASE]
    assert result.images[0].tobytes() == plain.images[0].tobytes()
    assert "did not evaluate the tiles of DemoFusion" in result.comments
    assert "DemoFusion error" in result.infotexts[0]


@pytest.mark.parametrize("after_steps", [0, 2])
def test_a_noise_sampler_without_noise_stops_the_stage(
    webui: Webui, monkeypatch: pytest.MonkeyPatch, reported: Reports, after_steps: int
) -> None:
    """Some schedules make the noise sampler of an SDE sampler raise RecursionError, at its first or a later step.

    The webui would catch the error and return its last latent. In a stage, this latent has the size of the result, but
    still contains noise, so the stage must fail.
    """
    reported.expect("cannot draw noise for this schedule type")
    plain = webui.job(sampler_name="DPM++ 2M SDE")

    def sample(model: Any, x: torch.Tensor, sigmas: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if x.shape[-1] * 8 == BASE:
            return real(model, x, sigmas, **kwargs)
        if after_steps:
            real(model, x, sigmas[: after_steps + 1], **kwargs)
        raise RecursionError("maximum recursion depth exceeded")

    real = k_diffusion.sampling.sample_dpmpp_2m_sde
    monkeypatch.setattr(k_diffusion.sampling, "sample_dpmpp_2m_sde", functools.wraps(real)(sample))
    result = webui.job(ON, sampler_name="DPM++ 2M SDE")
    assert sizes(result) == [BASE]
    assert result.images[0].tobytes() == plain.images[0].tobytes()
    assert "choose another schedule type" in result.comments


def test_an_unknown_webui_is_reported_when_the_extension_is_loaded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reported: Reports
) -> None:
    reported.expect("not tested in this webui (Another 3.1)")
    backends.greet()
    assert caplog.messages == []
    monkeypatch.setattr(sd_samplers_cfg_denoiser, "sampling_function", None, raising=False)
    monkeypatch.setitem(sys.modules, "modules.launch_utils", SimpleNamespace(git_tag=lambda: "Another 3.1"))
    backends.greet()
    assert len(caplog.messages) == 1
    assert "not tested in this webui (Another 3.1)" in caplog.messages[0]


def webui_class(cls: type) -> type:
    """Returns the webui's class of a stage's denoiser. The extension derives `cls` from this class."""
    return next(c for c in cls.__mro__ if c.__module__.startswith("modules."))


@pytest.mark.parametrize("sampler", list(sd_samplers.all_samplers_map))
@pytest.mark.parametrize(
    "settings", [{"denoising_strength": 0.05}, {"denoising_strength": 0.2}, {"hires_steps": 1}, {}], ids=str
)
def test_every_sampler_runs_a_stage_with_few_steps(webui: Webui, sampler: str, settings: dict[str, float]) -> None:
    result = webui.job({**ON, **settings}, sampler_name=sampler, steps=2)
    assert sizes(result) == [2 * BASE]


@pytest.mark.parametrize("name", ["Euler a", "Heun", "DPM2 a", "DDIM"])
def test_a_sampler_that_is_a_partial_function_gives_the_same_image(
    webui: Webui, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Extensions can add a sampler as a partial function that changes default arguments of the original function."""
    plain = webui.job(THREE, sampler_name=name)
    config = sd_samplers.find_sampler_config(name)

    def construct(model: Any) -> Any:
        sampler = config.constructor(model)
        sampler.func = functools.partial(functools.partial(sampler.func), disable=True)
        return sampler

    added = config._replace(name="Added", constructor=construct)
    monkeypatch.setitem(sd_samplers.all_samplers_map, "Added", added)
    result = webui.job(THREE, sampler_name="Added")
    assert result.images[0].tobytes() == plain.images[0].tobytes()


def test_the_base_image_equals_the_image_without_demofusion(webui: Webui) -> None:
    plain = webui.job()
    result = webui.job({**ON, "return_stages": True})
    assert result.images[1].tobytes() == plain.images[0].tobytes()


def test_the_same_seed_gives_the_same_image(webui: Webui) -> None:
    first, second = (webui.job(ON, sampler_name="Euler a").images[0].tobytes() for _ in range(2))
    assert first == second
    assert webui.job(ON, sampler_name="Euler a", seed=8).images[0].tobytes() != first


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M SDE", "DDIM"])
@pytest.mark.parametrize("batch", [{"batch_size": 2}, {"n_iter": 2}])
def test_each_image_of_a_batch_equals_the_image_of_a_job_with_its_seed(
    webui: Webui, sampler: str, batch: dict[str, int]
) -> None:
    both = webui.job(ON, sampler_name=sampler, **batch)
    assert len(both.images) == 2
    for image, seed in zip(both.images, (7, 8)):
        # the model may round a batch differently from a single image
        assert largest_difference(image, webui.job(ON, sampler_name=sampler, seed=seed).images[0]) <= 1


def test_a_disabled_extension_changes_nothing(webui: Webui) -> None:
    without = webui.job(sampler_name="Euler a", batch_size=2)
    off = webui.job({"enabled": False, "scale": 4}, sampler_name="Euler a", batch_size=2)
    assert [image.tobytes() for image in off.images] == [image.tobytes() for image in without.images]
    assert off.infotexts == without.infotexts


@pytest.mark.parametrize(
    "off", [{"enabled": False, "scale": 99, "stages": "3,2"}, {"enabled": "False", "preset": "deleted"}], ids=str
)
def test_a_disabled_extension_reports_no_errors(webui: Webui, off: dict[str, Any]) -> None:
    """The panel can contain values that would be refused, such as a preset that was deleted."""
    result = webui.job(off)
    assert result.infotexts == webui.job().infotexts
    assert "DemoFusion" not in result.comments


def test_a_misspelt_name_of_the_field_enabled_is_reported(webui: Webui, reported: Reports) -> None:
    reported.expect("'enable' does not exist")
    message = "the field 'enable' does not exist (its value is True). Use the fields enabled, "
    assert message in webui.job({"enable": True}).comments


def test_a_run_does_not_change_later_jobs_without_demofusion(webui: Webui) -> None:
    before = webui.job(sampler_name="Euler a")
    webui.job(THREE, sampler_name="DPM++ SDE")
    after = webui.job({}, sampler_name="Euler a")
    assert after.images[0].tobytes() == before.images[0].tobytes()
    assert after.infotexts == before.infotexts
    assert shared.state.textinfo is None


def test_pasting_the_infotext_restores_the_settings(webui: Webui) -> None:
    settings = {
        **ON,
        "scale": 2.5,
        "stages": "1,1.5,2.5",
        "cosine_scale_1": 2.5,
        "jitter": False,
        "denoising_strength": 0.75,
    }
    text = webui.job(settings).infotexts[0]
    params = infotext_utils.parse_generation_parameters(text)
    script = next(script for script in scripts.scripts_txt2img.alwayson_scripts if script.name == "demofusion hires")
    pasted = dict(zip(CONTROLS, (read(params) for _, read in script.infotext_fields)))
    assert {name: pasted[name] for name in settings} == settings
    assert params["DemoFusion size"] == f"{BASE * 5 // 2} x {BASE * 5 // 2}"


def test_an_infotext_without_demofusion_disables_the_panel(webui: Webui) -> None:
    params = infotext_utils.parse_generation_parameters(webui.job().infotexts[0])
    script = scripts.scripts_txt2img.alwayson_scripts[0]
    values = [read(params) for _, read in script.infotext_fields]
    # None leaves a control unchanged
    assert values == [False, *[None] * (len(values) - 1)]


def test_an_interrupt_returns_the_image_of_the_previous_stage(webui: Webui, in_model: Callable) -> None:
    in_model(lambda: shared.state.interrupt() if in_stage(2) else None)
    result = webui.job(THREE)
    assert sizes(result) == [2 * BASE]
    assert "DemoFusion stopped" in result.infotexts[0]
    # the page repeats this message above the image
    assert f"DemoFusion stopped: showing stage 1 of 2 ({2 * BASE}x{2 * BASE})\n" in result.comments


def test_the_message_after_an_interrupt_in_the_base_pass_contains_the_size_of_the_image(
    webui: Webui, in_model: Callable
) -> None:
    in_model(shared.state.interrupt)
    result = webui.job(THREE)
    assert sizes(result) == [BASE]
    assert f"DemoFusion stopped: showing the base image ({BASE}x{BASE})\n" in result.comments


def test_after_an_interrupt_no_later_iteration_runs(webui: Webui, in_model: Callable) -> None:
    in_model(lambda: shared.state.interrupt() if in_stage(1) else None)
    assert sizes(webui.job(ON, n_iter=3)) == [BASE]


def test_after_the_button_skip_the_next_iteration_runs(webui: Webui, in_model: Callable) -> None:
    skips = [True]
    in_model(lambda: shared.state.skip() if in_stage(1) and skips and skips.pop() else None)
    assert sizes(webui.job(ON, n_iter=2)) == [BASE, 2 * BASE]


@pytest.mark.parametrize("stage", [1, 2])
def test_if_a_stage_fails_the_previous_image_is_returned(
    webui: Webui, in_model: Callable, stage: int, reported: Reports
) -> None:
    reported.expect(f"stage {stage} of 2", "injected, once")

    def fail() -> None:
        if in_stage(stage):
            raise RuntimeError("injected, once")

    plain = webui.job({}).images[0].tobytes()
    in_model(fail)
    result = webui.job(THREE)
    assert sizes(result) == [stage * BASE]
    assert "injected" in result.infotexts[0]
    assert "injected" in result.comments
    assert webui.job({}).images[0].tobytes() == plain


def test_an_error_in_the_base_pass_is_raised(webui: Webui, in_model: Callable) -> None:
    def fail() -> None:
        raise RuntimeError("injected")

    in_model(fail)
    with pytest.raises(RuntimeError, match="injected"):
        webui.job(ON)


def test_an_impossible_value_is_reported(webui: Webui, reported: Reports) -> None:
    reported.expect("scale: 99 is not valid")
    result = webui.job({"enabled": True, "scale": 99})
    assert sizes(result) == [BASE]
    assert "scale: 99 is not valid" in result.comments
    assert "DemoFusion error" in result.infotexts[0]


def test_an_unknown_field_is_reported(webui: Webui, reported: Reports) -> None:
    reported.expect("scael")
    result = webui.job({"enabled": True, "scael": 2})
    assert sizes(result) == [BASE]
    assert "scael" in result.comments


def test_progress_never_falls_and_ends_near_1(webui: Webui, in_model: Callable) -> None:
    seen: list[float] = []
    in_model(lambda: seen.append(shared.state.progress()))
    webui.job(THREE, n_iter=2)
    assert seen == sorted(seen)
    # the last value is read before the last model call, and decoding follows
    assert seen[0] < 0.1
    assert 0.8 < seen[-1] <= 1


def test_the_api_reports_integer_numbers_of_jobs(webui: Webui, in_model: Callable) -> None:
    """The webui's API converts the number of the current job and the number of jobs to JSON."""
    texts: list[str] = []
    in_model(lambda: texts.append(json.dumps([shared.state.job_no, shared.state.job_count])))
    webui.job(THREE, n_iter=2)
    numbers = [json.loads(text) for text in texts]
    assert all(type(number) is int for pair in numbers for number in pair)
    assert [job for job, _ in numbers] == sorted(job for job, _ in numbers)
    assert all(0 <= job < count for job, count in numbers)
    assert len({job for job, _ in numbers}) > 4


@pytest.mark.parametrize("redraw", [False, True])
def test_img2img_runs_with_and_without_redrawing_the_upload(webui: Webui, redraw: bool) -> None:
    picture = webui.job(seed=3).images[0]
    result = webui.job({**ON, "img2img_first": redraw, "return_stages": True}, init_image=picture)
    assert sizes(result) == [2 * BASE, BASE]


def test_stages_are_saved_with_their_infotext(webui: Webui) -> None:
    result = webui.job({**ON, "save_stages": True}, do_not_save_samples=False, seed=77)
    saved = sorted((webui.folder / "txt2img-images").glob("*-77*.png"))
    widths = []
    for path in saved:
        with Image.open(path) as image:
            widths.append(image.width)
            assert "DemoFusion" in image.info["parameters"]
    assert sorted(widths) == [BASE, 2 * BASE]
    assert sizes(result) == [2 * BASE]


def test_a_wide_image_keeps_its_aspect_ratio(webui: Webui) -> None:
    result = webui.job(ON, width=96, height=64)
    assert result.images[0].size == (192, 128)


def live_tensors() -> tuple[int, int]:
    """Returns the number of existing tensors, and the number of bytes in the storages of these tensors."""
    gc.collect()
    # `isinstance` would read `__class__`, and some objects of torch warn about this
    tensors = [entry for entry in gc.get_objects() if issubclass(type(entry), torch.Tensor)]
    # a tensor on a simulated GPU (tests/card) keeps its data in a CPU tensor, so the bytes of CPU tensors are enough
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu"]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    return len(tensors), sum(sizes.values())


@pytest.fixture
def only_new_objects() -> Iterator[None]:
    """Hides the objects that exist before the test from `live_tensors`. Otherwise `live_tensors` would take seconds."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("only_new_objects")
@pytest.mark.parametrize("sampler", ["Euler", "DPM++ SDE"])
def test_memory_stays_constant_in_a_queue_of_twenty_jobs(webui: Webui, sampler: str) -> None:
    """From the second job on, the number of tensors and the number of bytes are constant."""
    alive = []
    for seed in range(20):
        webui.job({**ON, "return_stages": True}, sampler_name=sampler, seed=seed)
        alive.append(live_tensors())
    assert alive[1:] == [alive[1]] * 19


@pytest.mark.usefixtures("only_new_objects")
def test_live_tensors_counts_a_new_tensor() -> None:
    before = live_tensors()
    left = torch.zeros(3, 5)
    assert live_tensors() == (before[0] + 1, before[1] + left.numel() * left.element_size())


@pytest.mark.parametrize(
    ("upscaler", "resample"), [("Lanczos", Image.Resampling.LANCZOS), ("Nearest", Image.Resampling.NEAREST)]
)
def test_an_anchor_for_an_upscaler_in_pixels_is_the_encoded_enlarged_image(
    webui: Webui, monkeypatch: pytest.MonkeyPatch, upscaler: str, resample: Image.Resampling
) -> None:
    """The test enlarges the base image with Pillow and encodes it. The anchor of the stage must equal the result."""
    anchors: list[torch.Tensor] = []

    def recording(p: Any, task: Any, report: Any) -> torch.Tensor:
        anchors.append(task.anchor)
        return task.anchor

    monkeypatch.setattr(stage_loop, "run_stage", recording)
    result = webui.job({**ON, "upscaler": f"{upscaler} (pixels)", "return_stages": True}, batch_size=2)
    base = next(image for image in result.images if image.width == BASE)
    enlarged = base.resize((2 * BASE, 2 * BASE), resample)
    pixels = torch.from_numpy(np.asarray(enlarged, np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    expected = webui.small.encode(pixels)
    # the base image that the test enlarges has 8 bits per channel. One level is 0.008 on the scale -1..1
    torch.testing.assert_close(anchors[0][:1], expected, rtol=0, atol=0.02)
    assert anchors[0].shape == (2, 4, 2 * BASE // 8, 2 * BASE // 8)


def test_a_mixed_anchor_combines_the_enlarged_latent_and_the_encoded_enlarged_image(
    webui: Webui, monkeypatch: pytest.MonkeyPatch
) -> None:
    anchors: dict[str, torch.Tensor] = {}

    def recording(p: Any, task: Any, report: Any) -> torch.Tensor:
        return anchors.setdefault(task.settings.anchor, task.anchor)

    monkeypatch.setattr(stage_loop, "run_stage", recording)
    for upscaler in ("Latent", "Lanczos (pixels)", "Lanczos"):
        webui.job({**ON, "upscaler": upscaler})
    torch.testing.assert_close(anchors["mixed"], mix_anchors(anchors["pixels"], anchors["latent"], 2.0))


def test_the_webuis_upscalers_are_choices_and_unknown_upscalers_are_reported(webui: Webui, reported: Reports) -> None:
    reported.expect("upscaler: '4x-Gone (pixels)' is not valid")
    assert SPECS["upscaler"].choices(user_presets.known_choices()) == ("Latent", "Lanczos", "Nearest")
    result = webui.job({**ON, "upscaler": "4x-Gone (pixels)"})
    assert sizes(result) == [BASE]
    assert "upscaler: '4x-Gone (pixels)' is not valid. Use one of Latent, Lanczos, Nearest" in result.comments


class Broken:
    """Imitates an upscaler whose model cannot be loaded. The webui then uses Lanczos."""

    def upscale(self, img: Image.Image, scale: float, selected_model: str) -> Image.Image:
        return img.resize([int(side * scale // 8) * 8 for side in img.size], Image.Resampling.LANCZOS)


def test_an_upscaler_that_does_not_work_is_reported(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = SimpleNamespace(name="4x-Broken", data_path="4x-Broken.pth", scaler=Broken())
    monkeypatch.setattr(shared, "sd_upscalers", [*shared.sd_upscalers, broken])
    result = webui.job({**ON, "upscaler": "4x-Broken (pixels)"}, batch_size=2)
    note = "the upscaler 4x-Broken does not work, so Lanczos was used instead; see the console"
    assert sizes(result) == [2 * BASE] * 2
    assert result.comments.count(note) == 1
    assert all(note in text for text in result.infotexts), result.infotexts
    for good in ("Lanczos", "Nearest"):
        assert "note" not in webui.job({**ON, "upscaler": f"{good} (pixels)"}).infotexts[0]


NOTES = (
    ({"enabled": True, "scale": 1}, "no stage: the final size is the size of the base image"),
    ({"enabled": True, "scale": 1.3}, "83x83 is rounded to 80x80, multiples of 8 pixels"),
)


@pytest.mark.parametrize(("settings", "note"), NOTES)
def test_notes_are_in_the_infotext_of_every_image(webui: Webui, settings: dict[str, Any], note: str) -> None:
    result = webui.job(settings, n_iter=2)
    texts = [infotext_utils.parse_generation_parameters(text) for text in result.infotexts]
    assert [text["DemoFusion note"] for text in texts] == [note] * 2
    assert note in result.comments


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("demofusion_view_batch", 65, "a whole number from 0 to 64"),
        ("demofusion_view_batch", "many", "a whole number from 0 to 64"),
        ("demofusion_decode_in_parts", "sometimes", "one of automatic, always, never"),
    ],
)
@pytest.mark.parametrize("hires_fix", [False, True])
def test_an_impossible_setting_is_reported(
    webui: Webui,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    value: object,
    allowed: str,
    hires_fix: bool,
    reported: Reports,
) -> None:
    reported.expect(f"setting {option}")
    monkeypatch.setattr(shared.opts, option, value)
    result = webui.job(ON, enable_hr=hires_fix)
    assert sizes(result) == [BASE]
    assert f"setting {option}: {value!r} is not valid. Use {allowed}" in result.comments


def test_enlarging_pixels_and_latents_gives_different_images(webui: Webui) -> None:
    one, other = (webui.job({**THREE, "upscaler": name}) for name in ("Latent", "Lanczos (pixels)"))
    assert sizes(other) == [3 * BASE]
    assert other.images[0].tobytes() != one.images[0].tobytes()
    assert "DemoFusion upscaler: Lanczos (pixels)" in other.infotexts[0]
    assert "upscaler" not in one.infotexts[0]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Imitates tiled decoding with three reports of progress. Records the image's width in pixels at each report."""
    widths: list[int] = []
    real = coding.decode

    def decode(p: Any, latent: torch.Tensor, report: vae.Report | None = None) -> Any:
        for share in (0.25, 0.75, 1.0):
            widths.append(latent.shape[-1] * 8)
            if report is not None:
                report(share)
        return real(p, latent)

    monkeypatch.setattr(coding, "decode", decode)
    return widths


@pytest.mark.parametrize("shown", [{}, {"return_stages": True, "save_stages": True}])
def test_no_image_is_decoded_twice(webui: Webui, decoded: list[int], shown: dict[str, bool]) -> None:
    webui.job(
        {**THREE, "stages": "every", "upscaler": "Lanczos (pixels)", **shown}, do_not_save_samples=False, seed=9001
    )
    assert decoded == [BASE] * 3 + [2 * BASE] * 3 + [3 * BASE] * 3


def test_only_displayed_images_are_decoded(webui: Webui, decoded: list[int]) -> None:
    """With "Keep colors", the base image is decoded too, because the final image gets the colors of the base image."""
    webui.job({**THREE, "upscaler": "Latent", "keep_colors": False})
    assert decoded == [3 * BASE] * 3
    decoded.clear()
    webui.job({**THREE, "upscaler": "Latent", "keep_colors": True})
    assert decoded == [3 * BASE] * 3 + [BASE] * 3


@pytest.mark.parametrize("size", [{}, {"width": 3 * BASE, "height": 2 * BASE}])
def test_showing_the_stages_does_not_change_the_final_image(webui: Webui, size: dict[str, int]) -> None:
    settings = {**THREE, "upscaler": "Lanczos (pixels)", **size}
    one, other = (webui.job({**settings, "return_stages": shown}).images[0] for shown in (False, True))
    assert one.size == (3 * BASE, 2 * BASE if size else 3 * BASE)
    assert one.tobytes() == other.tobytes()


def test_the_progress_bar_moves_while_an_image_is_decoded(
    webui: Webui, decoded: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[float] = []
    move = progress.Progress.move
    clock = SimpleNamespace(now=1000.0)
    unet, decode = webui.small.unet, coding.decode

    def passing(cells: int) -> None:
        clock.now += cells / 1000

    def watched(x: torch.Tensor, *args: Any) -> torch.Tensor:
        passing(x[:, 0].numel())
        return unet(x, *args)

    def decoding(p: Any, latent: torch.Tensor, report: vae.Report) -> Any:
        return decode(p, latent, lambda share: (passing(latent[:, 0].numel()), report(share)))

    # the clock is simulated because real times vary; the folder is new because stored timings would change the bar
    monkeypatch.setattr(webui, "folder", tmp_path)
    monkeypatch.setattr(webui.small, "unet", watched)
    monkeypatch.setattr(coding, "decode", decoding)
    look = lambda: clock.now  # noqa: E731
    for module in (progress, timing, shared):
        monkeypatch.setattr(module, "time", SimpleNamespace(time=look, perf_counter=look))

    def looking(self: Any, part: int, share: float) -> None:
        move(self, part, share)
        if part == progress.DECODING:
            seen.append(shared.state.progress())

    monkeypatch.setattr(progress.Progress, "move", looking)
    webui.job({**THREE, "stages": "every", "upscaler": "Lanczos (pixels)"})
    # for each of the three images, the bar moves when decoding begins and at each of the three reports
    assert seen == sorted(seen)
    assert len(set(seen)) == 4 * 3
    assert seen[-1] == pytest.approx(1)


def test_an_interrupt_while_an_image_is_decoded_for_the_upscaler_returns_this_image(
    webui: Webui, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    move = progress.Progress.move

    def interrupting(self: Any, part: int, share: float) -> None:
        move(self, part, share)
        if part == progress.DECODING and decoded.count(2 * BASE) == 1:
            shared.state.interrupt()

    monkeypatch.setattr(progress.Progress, "move", interrupting)
    result = webui.job({**THREE, "stages": "every", "upscaler": "Lanczos (pixels)"})
    assert sizes(result) == [2 * BASE]
    assert "in stage 2 of 2 (192x192), this is stage 1 of 2 (128x128)" in result.infotexts[0]
    # the interrupt ends decoding at the second report; then the image is decoded again, because the job returns it
    assert decoded == [BASE] * 3 + [2 * BASE] * 2 + [2 * BASE] * 3


def test_an_interrupt_during_encoding_for_a_stage_returns_the_previous_image(
    webui: Webui, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    move = progress.Progress.move

    def interrupting(self: Any, part: int, share: float) -> None:
        move(self, part, share)
        if part == progress.ENCODING:
            shared.state.interrupt()

    monkeypatch.setattr(progress.Progress, "move", interrupting)
    encode = coding.encode

    def reporting(p: Any, pictures: Any, report: vae.Report) -> Any:
        result = encode(p, pictures)
        report(1.0)
        return result

    monkeypatch.setattr(coding, "encode", reporting)
    result = webui.job({**ON, "upscaler": "Lanczos (pixels)"})
    assert sizes(result) == [BASE]
    assert f"in stage 1 of 1 (128x128), this is the base image ({BASE}x{BASE})" in result.infotexts[0]


def test_encoding_an_anchor_does_not_change_torchs_generator(webui: Webui) -> None:
    torch.manual_seed(3)
    webui.job({**ON, "upscaler": "Latent"})
    state = torch.get_rng_state()
    torch.manual_seed(3)
    webui.job({**ON, "upscaler": "Lanczos (pixels)"})
    assert torch.equal(torch.get_rng_state(), state)


def test_the_base_image_is_returned_if_encoding_fails(
    webui: Webui, monkeypatch: pytest.MonkeyPatch, reported: Reports
) -> None:
    reported.expect("no encoder")

    def failing(*args: Any) -> None:
        raise RuntimeError("no encoder")

    monkeypatch.setattr(webui.small, "encode", failing)
    result = webui.job({**ON, "upscaler": "Lanczos (pixels)"})
    assert sizes(result) == [BASE]
    assert "no encoder" in result.infotexts[0]


@pytest.mark.parametrize("size", [(24, 40), (9, 17)])
def test_lanczos_equals_pillows_filter_up_to_rounding(webui: Webui, size: tuple[int, int]) -> None:
    # the contrast is low, because Pillow clips the values after each of its two passes, and `lanczos` does not clip.
    # Pillow also rounds to 8 bits. One level is 0.008 on the scale -1..1
    picture = torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(0)) - 0.5
    out = upscaling.lanczos(picture, size)
    whole = Image.fromarray(((picture * 0.5 + 0.5) * 255).round().byte().permute(1, 2, 0).numpy())
    expected = np.asarray(whole.resize((size[1], size[0]), Image.Resampling.LANCZOS), np.float32) / 127.5 - 1
    assert out.shape == (3, *size)
    torch.testing.assert_close(out.clamp(-1, 1).permute(1, 2, 0), torch.from_numpy(expected), rtol=0, atol=0.02)
