"""How long a run takes: measured with a clock of the test's own, kept, and told in the live line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from in_process import BASE, Webui
from modules import paths_internal, shared

from lib_demofusion.host.panel import line
from lib_demofusion.host.progress import timing
from lib_demofusion.method.plan import make_plan
from lib_demofusion.settings.fields import Settings

BASE_CELLS = BASE // 8
PLAN = make_plan(Settings(scale=2), (BASE_CELLS, BASE_CELLS))
CELLS = PLAN.stages[0].cells


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def measure(*calls: tuple[int, float]) -> float | None:
    """The rate after calls of so many cells, each of which took so many seconds, and one more that has begun."""
    clock = Clock()
    watch = timing.Stopwatch(clock)
    for cells, seconds in calls:
        watch.begin_call(cells)
        clock.time += seconds
    watch.begin_call(1)
    return watch.rate


@pytest.fixture
def rates(webui: Webui, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[timing.Rates]:
    """None seen so far."""
    monkeypatch.setattr(paths_internal, "data_path", str(tmp_path))
    fresh = timing.Rates()
    monkeypatch.setattr(timing, "RATES", fresh)
    return fresh


def test_the_first_call_is_warm_up() -> None:
    assert measure((100, 60.0), (100, 2.0), (100, 2.0)) == pytest.approx(0.02)


def test_calls_of_fewer_cells_count_as_fewer() -> None:
    assert measure((100, 9.0), (300, 3.0), (100, 1.0)) == pytest.approx(0.01)


@pytest.mark.parametrize("calls", [(), ((100, 5.0),)])
def test_too_little_says_nothing(calls: tuple) -> None:
    assert measure(*calls) is None


def test_a_call_that_did_not_end_does_not_count() -> None:
    clock = Clock()
    watch = timing.Stopwatch(clock)
    for _ in range(3):
        watch.begin_call(100)
        clock.time += 1.0
    clock.time += 1000.0
    assert watch.rate == pytest.approx(0.01)


def test_rates_are_kept_by_checkpoint(rates: timing.Rates, tmp_path: Path) -> None:
    rates.learn("one", True, 0.25)
    rates.learn("two", True, 0.5)
    for known in (rates, timing.Rates()):
        assert known.of("one", True) == 0.25
        assert known.of("two", True) == 0.5
        assert known.of("three", True) is None
    assert set(json.loads((tmp_path / timing.FILE).read_text()).values()) == {0.25, 0.5}


def test_without_guidance_its_own_rate_counts_where_it_was_seen(rates: timing.Rates) -> None:
    rates.learn("one", True, 0.5)
    assert rates.of("one", False) == 0.5
    rates.learn("one", False, 0.25)
    assert (rates.of("one", True), rates.of("one", False)) == (0.5, 0.25)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"one on cpu": "fast"}', '{"one on cpu": -1}', '{"one on cpu": 1e999}']
)
def test_a_broken_file_is_no_rate(rates: timing.Rates, tmp_path: Path, text: str) -> None:
    (tmp_path / timing.FILE).write_text(text)
    assert rates.of("one", True) is None
    rates.learn("one", True, 0.5)
    assert timing.Rates().of("one", True) == 0.5


def test_a_folder_that_cannot_be_written_is_no_failure(
    rates: timing.Rates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(paths_internal, "data_path", str(tmp_path / "file"))
    rates.learn("one", True, 0.5)
    assert rates.of("one", True) == 0.5


@pytest.mark.parametrize("batch", [1, 2])
def test_a_run_teaches_what_its_model_took(
    rates: timing.Rates, webui: Webui, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """Every evaluated view takes a thousandth of a second per cell here, and the first call an hour more."""
    clock = Clock()
    monkeypatch.setattr(timing.Stopwatch.__init__, "__defaults__", (clock,))
    unet = webui.small.unet
    slow = [3600.0]

    def timed(x, *args):  # type: ignore[no-untyped-def]
        if (shared.state.textinfo or "").startswith("DemoFusion"):
            # cond and uncond are rows of their own
            clock.time += x.shape[0] / 2 * x.shape[-1] * x.shape[-2] / 1000 + (slow.pop() if slow else 0)
        return unet(x, *args)

    monkeypatch.setattr(webui.small, "unet", timed, raising=False)
    webui.job({"enabled": True, "scale": 2}, batch_size=batch)
    assert rates.of("random", True) == pytest.approx(0.001, rel=1e-3)


def line_in(settings: dict[str, Any] | None = None, **tab: Any) -> str:
    """The live line's text for a tab of 512x512 pixels and 10 steps."""
    values = {"width": 512, "height": 512, "steps": 10, **tab}
    html = line.describe([{"enabled": True, "scale": 2, **(settings or {})}], line.TabValues(**values))
    return re.sub("<[^>]+>", "", html)


FROM_TO = "resize: from <span class='resolution'>{}</span> to <span class='resolution'>{}</span>"


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
def test_with_hires_fix_its_result_is_the_base(webui: Webui, tab: dict[str, Any], sizes: str) -> None:
    assert line_in(hr_checkbox=True, **tab).startswith(sizes + ",")
    assert line_in(**{key: tab[key] for key in tab if key == "width"}).startswith(f"{tab.get('width', 512)}x512 → ")


def test_hires_fix_counts(webui: Webui, rates: timing.Rates) -> None:
    """10 steps at 512x512, 4 at 1024x1024 and the stage; of its 9 + 4 views the dilated ones rest in the last step."""
    first, second = 64**2, 128**2
    stage = 10 * (9 + 4) - 4
    text = line_in({"strength": 1}, hr_checkbox=True, hires_steps=4, hr_scale=2)
    assert f"{10 + 4 + stage} model evaluations" in text
    cells = 10 * first + (4 + stage) * second
    assert f"{cells / (10 * second):.3g} times the base pass" in text
    rates.learn("random", True, 100 / cells)
    assert "about 100 seconds" in line_in({"strength": 1}, hr_checkbox=True, hires_steps=4, hr_scale=2)
    assert f"{10 + 10 + stage} model" in line_in(hr_checkbox=True, hr_scale=2)


def test_resize_by_is_of_the_picture(webui: Webui) -> None:
    tab = {"img2img": True, "scale": 1.5, "scale_resolution_preview": FROM_TO.format("400x600", "600x900")}
    assert line_in(resize_by=True, **tab).startswith("600x896 → 1200x1792,")
    assert line_in(resize_by=False, **tab).startswith("512x512 → ")
    tab["scale_resolution_preview"] = "no image selected"
    assert line_in(resize_by=True, **tab).startswith("512x512 → ")


@pytest.mark.parametrize(("redraw", "strength", "base"), [(False, 0.5, 0), (True, 0.5, 6), (True, 1, 10)])
def test_img2img_counts_what_it_runs(webui: Webui, redraw: bool, strength: float, base: int) -> None:
    """The webui's own pass runs int(10 * strength) + 1 steps of 10, or none."""
    text = line_in({"redraw_base": redraw}, img2img=True, denoising_strength=strength)
    stage = 10 * (9 + 4) - 4
    assert f"{base + stage} model evaluations" in text
    assert f"{(base + stage) / 10:.3g} times the base pass" in text


def seconds_in(**tab: float) -> float:
    """What the live line says for a picture of the tests' size."""
    seen: list[float] = []
    size = {"width": BASE, "height": BASE, "steps": 10}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line, "duration", lambda seconds: seen.append(seconds) or "")
        line.describe([{"enabled": True, "scale": 2}], line.TabValues(**{**size, **tab}))
    return seen[0]


def test_the_line_counts_every_evaluation(rates: timing.Rates) -> None:
    rates.learn("random", True, 0.001)
    one = seconds_in()
    dilated = (2 * BASE_CELLS) ** 2
    # at the lowest timestep the dilated views have no weight
    assert one == pytest.approx(0.001 * (10 * (BASE_CELLS**2 + CELLS) - dilated))
    assert seconds_in(batch_size=3) == pytest.approx(3 * one)
    assert seconds_in(batch_count=4, batch_size=2) == pytest.approx(8 * one)
    assert seconds_in(cfg_scale=1) == pytest.approx(one)
    rates.learn("random", False, 0.0005)
    assert seconds_in(cfg_scale=1) == pytest.approx(one / 2)
    assert seconds_in(cfg_scale=1.5) == pytest.approx(one)


def test_the_line_says_nothing_of_a_checkpoint_not_seen(rates: timing.Rates) -> None:
    text = line.describe([{"enabled": True}], line.TabValues())
    assert line.ABOUT not in text
    rates.learn("another", True, 0.001)
    assert line.describe([{"enabled": True}], line.TabValues()) == text


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
def test_times_are_rough(seconds: float, text: str) -> None:
    number, unit = text.split()
    assert line.duration(seconds) == f"<span>about</span> {number} <span>{unit}</span>"
