"""Tests that the speed of the model is measured on a simulated clock, stored, and used in the panel's summary line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from in_process import BASE, Webui
from modules import paths_internal, shared
from reports import Reports

from lib_demofusion.host.panel import line, markup
from lib_demofusion.host.panel.tab import TabValues
from lib_demofusion.host.progress import timing
from lib_demofusion.method.plan import make_plan
from lib_demofusion.method.residual import VariancePreserving
from lib_demofusion.method.sampler_steps import StepDetector
from lib_demofusion.method.stage import SamplerTraits, StageRun
from lib_demofusion.settings.fields import Settings

BASE_CELLS = BASE // 8
PLAN = make_plan(Settings(scale=2), (BASE_CELLS, BASE_CELLS))
CELLS = PLAN.stages[0].cells_at(0.5)
"""Number of cells that the stage evaluates for one model call of the sampler, with tiles and dilated views.

The argument 0.5 is the weight of the dilated views. Any weight between 0 and 1 gives the same number.
"""


class Clock:
    """A simulated clock. The test sets `time`, in seconds."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def measure(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> float | None:
    """Runs model calls that take `seconds`, and begins one more, because a call is measured when the next call begins.

    Returns the measured seconds per cell, or None if there is no measurement.
    """
    clock = Clock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=clock))
    x = torch.zeros(1, 4, *PLAN.stages[0].size)
    space = VariancePreserving(torch.linspace(1, 0.01, 1000))
    run = StageRun(PLAN.stages[0], Settings(), x, x, SamplerTraits(space, StepDetector()))
    counting = timing.StageProgress(run, lambda call, level: len(seconds) - call)
    for taken in (*seconds, 0):
        run.before_call(x.clone(), torch.tensor(500.0))
        counting.before_batch(CELLS)
        clock.time += taken
    return counting.rate


@pytest.fixture
def timings(webui: Webui, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns an empty folder, in which the extension stores the measured times."""
    monkeypatch.setattr(paths_internal, "data_path", str(tmp_path))
    return tmp_path


def test_the_first_call_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call takes 60 s, and the others take 3 s on average."""
    assert measure(monkeypatch, 60.0, 2.0, 4.0) == pytest.approx(3 / CELLS)


@pytest.mark.parametrize("calls", [(), (5.0,)])
def test_no_rate_is_measured_with_fewer_than_two_complete_calls(
    monkeypatch: pytest.MonkeyPatch, calls: tuple[float, ...]
) -> None:
    assert measure(monkeypatch, *calls) is None


def named(name: str) -> SimpleNamespace:
    """Returns a model whose checkpoint has the name `name`."""
    return SimpleNamespace(sd_checkpoint_info=SimpleNamespace(name_for_extra=name))


def test_each_checkpoint_has_its_own_rates(timings: Path) -> None:
    timing.learn(named("one"), timing.MODEL, 0.25)
    timing.learn(named("two"), timing.MODEL, 0.5)
    timing.learn(named("two"), timing.DECODER, 0.75)
    timing.learn(named("two"), timing.MODEL, None)
    known = [timing.known(named(name), timing.MODEL) for name in ("one", "two", "three")]
    assert known == [0.25, 0.5, None]
    assert set(json.loads((timings / timing.FILE).read_text()).values()) == {0.25, 0.5, 0.75}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"one on cpu: model": "fast"}', '{"one on cpu: model": -1}', '{"one on cpu: model": 1e999}'],
)
def test_a_broken_file_contains_no_rates_and_is_replaced_by_the_next_measurement(
    timings: Path, text: str, reported: Reports
) -> None:
    if not text.startswith('{"'):
        reported.expect(f"{timing.FILE} cannot be read")
    (timings / timing.FILE).write_text(text)
    assert timing.known(named("one"), timing.MODEL) is None
    timing.learn(named("one"), timing.MODEL, 0.5)
    assert timing.known(named("one"), timing.MODEL) == 0.5


def test_a_folder_that_cannot_be_written_causes_only_a_warning(
    timings: Path, monkeypatch: pytest.MonkeyPatch, reported: Reports
) -> None:
    reported.expect(f"{timing.FILE} cannot be written", f"{timing.FILE} cannot be read")
    (timings / "file").write_text("")
    monkeypatch.setattr(paths_internal, "data_path", str(timings / "file"))
    timing.learn(named("one"), timing.MODEL, 0.5)
    assert timing.known(named("one"), timing.MODEL) is None


@pytest.mark.parametrize("batch", [1, 2])
def test_a_run_measures_the_rate_of_its_model(
    timings: Path, webui: Webui, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """Each view takes 0.001 s per cell. The first call takes another hour, and the measurement ignores this call."""
    clock = Clock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=clock))
    unet = webui.small.unet
    slow = [3600.0]

    def timed(x, *args):  # type: ignore[no-untyped-def]
        if (shared.state.textinfo or "").startswith("DemoFusion"):
            # half of the batch rows are conds, and the other half are unconds
            clock.time += x.shape[0] / 2 * x.shape[-1] * x.shape[-2] / 1000 + (slow.pop() if slow else 0)
        return unet(x, *args)

    monkeypatch.setattr(webui.small, "unet", timed, raising=False)
    webui.job({"enabled": True, "preset": "Paper", "scale": 2}, batch_size=batch)
    assert timing.known(named("random"), timing.MODEL) == pytest.approx(0.001, rel=1e-3)


def line_in(settings: dict[str, Any] | None = None, **tab: Any) -> str:
    """Returns the text of the summary line for 512x512 pixels, 10 steps and a scale of 2, if not given otherwise."""
    values = {"width": 512, "height": 512, "steps": 10, **tab}
    html = line.describe([{"enabled": True, "scale": 2, **(settings or {})}], TabValues(**values))
    return re.sub("<[^>]+>", "", html)


FROM_TO = "resize: from <span class='resolution'>{}</span> to <span class='resolution'>{}</span>"
"""The webui's text below "Resize by" in img2img, with the size of the upload and the resized size."""


@pytest.mark.parametrize(
    ("tab", "sizes"),
    [
        ({}, "1024x1024 → 2048x2048"),
        ({"hr_scale": 1.5}, "768x768 → 1536x1536"),
        ({"hr_resize_x": 640}, "640x640 → 1280x1280"),
        ({"width": 768, "hr_resize_y": 1024}, "1536x1024 → 3072x2048"),
        ({"hr_resize_x": 960, "hr_resize_y": 640}, "960x640 → 1920x1280"),
        ({"hr_scale": 1.33}, "680x680 → 1360x1360"),
    ],
)
def test_with_hires_fix_the_summary_line_begins_with_the_size_of_the_hires_image(
    webui: Webui, tab: dict[str, Any], sizes: str
) -> None:
    assert line_in(hr_checkbox=True, **tab).startswith(sizes + ",")
    assert line_in(**{key: tab[key] for key in tab if key == "width"}).startswith(f"{tab.get('width', 512)}x512 → ")


def test_the_summary_line_counts_the_steps_of_hires_fix(webui: Webui, timings: Path) -> None:
    """Hires fix runs 10 steps at 512x512 and 4 steps at 1024x1024. Then the stage runs 10 steps.

    Each step of the stage evaluates 9 tiles and 4 dilated views, except the last step, which evaluates only tiles. If
    the hires steps are not set, hires fix runs 10 steps at 1024x1024, so 6 more.
    """
    first, second = 64**2, 128**2
    stage = 10 * (9 + 4) - 4
    text = line_in({"denoising_strength": 1}, hr_checkbox=True, hires_steps=4, hr_scale=2)
    cells = 10 * first + (4 + stage) * second
    assert f"{cells / (10 * second):.3g} times the time of the base image" in text
    timing.learn(named("random"), timing.MODEL, 100 / cells)
    assert "about 100 seconds" in line_in({"denoising_strength": 1}, hr_checkbox=True, hires_steps=4, hr_scale=2)
    cells += 6 * second
    assert f"{cells / (10 * second):.3g} times the time of the base image" in line_in(hr_checkbox=True, hr_scale=2)


def test_resize_by_uses_the_size_of_the_uploaded_image(webui: Webui) -> None:
    tab = {"img2img": True, "scale": 1.5, "scale_resolution_preview": FROM_TO.format("400x600", "600x900")}
    assert line_in(resize_by=True, **tab).startswith("600x896 → 1200x1792,")
    assert line_in(resize_by=False, **tab).startswith("512x512 → ")
    tab["scale_resolution_preview"] = "no image selected"
    assert line_in(resize_by=True, **tab).startswith("512x512 → ")


@pytest.mark.parametrize("every_step", [False, True])
@pytest.mark.parametrize(("redraw", "strength", "base"), [(False, 0.5, 0), (True, 0.5, 6), (True, 1, 10)])
def test_the_summary_line_counts_the_steps_that_img2img_runs(
    webui: Webui, monkeypatch: pytest.MonkeyPatch, redraw: bool, strength: float, base: int, every_step: bool
) -> None:
    """The webui runs int(min(strength, 0.999) * 10) + 1 of 10 steps, and no step if the upload is not redrawn.

    With the webui's setting "do exactly the amount of steps the slider specifies", it runs 10 steps at any strength.
    Then the stage runs 10 steps with 9 tiles and 4 dilated views. The last step evaluates only tiles.
    """
    monkeypatch.setattr(shared.opts, "img2img_fix_steps", every_step, raising=False)
    if every_step and redraw:
        base = 10
    text = line_in({"img2img_first": redraw}, img2img=True, denoising_strength=strength)
    stage = 10 * (9 + 4) - 4
    assert f"{(base + stage) / 10:.3g} times the time of the base image" in text


@pytest.mark.parametrize("redraw", [False, True])
def test_the_summary_line_counts_the_steps_of_inpainting(webui: Webui, redraw: bool) -> None:
    """The webui always runs img2img if the upload has a mask: 6 of 10 steps at this denoising strength."""
    text = line_in({"img2img_first": redraw}, img2img=True, inpaint=True, denoising_strength=0.5)
    assert f"{(6 + 10 * (9 + 4) - 4) / 10:.3g} times the time of the base image" in text


def seconds_in(**tab: float) -> float:
    """Returns the summary line's expected time in seconds for a base image of BASE pixels and 10 steps."""
    seen: list[float] = []
    size = {"width": BASE, "height": BASE, "steps": 10}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line, "duration", lambda seconds: seen.append(seconds) or "")
        line.describe([{"enabled": True, "scale": 2}], TabValues(**{**size, **tab}))
    return seen[0]


def test_the_expected_time_includes_every_evaluation(timings: Path) -> None:
    timing.learn(named("random"), timing.MODEL, 0.001)
    one = seconds_in()
    dilated = (2 * BASE_CELLS) ** 2
    # in the last step, the dilated views have the weight 0 and are not evaluated
    assert one == pytest.approx(0.001 * (10 * (BASE_CELLS**2 + CELLS) - dilated))
    assert seconds_in(batch_size=3) == pytest.approx(3 * one)
    assert seconds_in(batch_count=4, batch_size=2) == pytest.approx(8 * one)


def test_the_summary_line_has_no_time_for_a_checkpoint_that_was_not_measured(timings: Path) -> None:
    text = line.describe([{"enabled": True}], TabValues())
    assert markup.ABOUT not in text
    timing.learn(named("another"), timing.MODEL, 0.001)
    assert line.describe([{"enabled": True}], TabValues()) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 seconds"),
        (7.4, "7 seconds"),
        (42, "40 seconds"),
        (119, "120 seconds"),
        (170, "3 minutes"),
        (7199, "120 minutes"),
        (9000, "2.5 hours"),
        (36_000, "10 hours"),
    ],
)
def test_times_are_rounded(seconds: float, text: str) -> None:
    number, unit = text.split()
    assert markup.duration(seconds) == f"<span>about</span> {number} <span>{unit}</span>"
