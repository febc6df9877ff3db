"""Tests the webui's display during a job: the bar on the page and on the console, and the live preview."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from in_process import Webui
from modules import sd_samplers, shared
from PIL import Image
from reports import Reports

from lib_demofusion.host.progress import webui_state

BALANCED = {"enabled": True, "preset": "Balanced", "scale": 2}
FAST = {"enabled": True, "preset": "Fast", "scale": 2}
"""With a base pass of at least 12 steps, a stage of Balanced runs 6 steps, and a stage of Fast runs 3."""


class Page:
    """Imitates the page, which asks for live previews. The imitation asks before every model call."""

    def __init__(self) -> None:
        self.previews: list[str] = []
        """For each preview: the text next to the bar, and the width of the latent in cells."""

    def look(self) -> None:
        """Records a preview if the webui's `State.set_current_image` would make one now."""
        state, every = shared.state, shared.opts.show_progress_every_n_steps
        due = every != -1 and state.sampling_step - state.current_image_sampling_step >= every
        if due and state.current_latent is not None:
            state.current_image_sampling_step = state.sampling_step
            self.previews.append(f"{state.textinfo} of {state.current_latent.shape[-1]} cells")

    def during_stage(self) -> list[str]:
        """Returns the previews that were shown during the stage. The jobs with this page have only one stage."""
        return [shown for shown in self.previews if "DemoFusion 1/1 128x128" in shown]


@pytest.fixture
def page(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> Page:
    """Returns an imitation of the page. Its method `look` is called before every model call."""
    looking = Page()
    unet = webui.small.unet

    def looked_at(*args: Any) -> Any:
        looking.look()
        return unet(*args)

    monkeypatch.setattr(webui.small, "unet", looked_at, raising=False)
    return looking


@pytest.fixture
def every(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Returns a function that sets the webui's "Live preview display period", in steps."""

    def set_to(steps: int) -> None:
        monkeypatch.setattr(shared.opts, "show_progress_every_n_steps", steps, raising=False)

    return set_to


@pytest.mark.parametrize(
    ("settings", "steps", "iterations", "previews"),
    [
        pytest.param(BALANCED, 24, 1, 1, id="6 steps"),
        pytest.param(BALANCED, 24, 2, 2, id="6 steps, two images"),
        pytest.param(FAST, 24, 1, 1, id="3 steps"),
        pytest.param({**BALANCED, "hires_steps": 0}, 20, 1, 1, id="10 steps"),
        pytest.param({**BALANCED, "hires_steps": 0}, 24, 1, 2, id="12 steps"),
    ],
)
def test_a_stage_has_a_preview_at_its_start_and_then_at_the_interval(
    webui: Webui, page: Page, every: Callable[[int], None], settings: Any, steps: int, iterations: int, previews: int
) -> None:
    """The interval is 10 steps. The ids of the cases contain the number of steps of the stage.

    All previews during the stage have the size of the stage (16 cells), not the size of the base image.
    """
    every(10)
    webui.job(settings, steps=steps, n_iter=iterations)
    assert len(page.during_stage()) == previews
    assert all("of 16 cells" in shown for shown in page.during_stage())


@pytest.mark.parametrize(("interval", "previews"), [(-1, 0), (1, 5), (3, 2), (32, 1)])
def test_a_stage_of_six_steps_never_has_more_previews_than_the_setting_requests(
    webui: Webui, page: Page, every: Callable[[int], None], interval: int, previews: int
) -> None:
    """`interval` is the number of steps between two previews, or -1 for no previews during sampling.

    The webui's step counter is 0 in both of the first two steps. So an interval of 1 gives five previews.
    """
    every(interval)
    webui.job(BALANCED, steps=24)
    assert len(page.during_stage()) == previews


@pytest.fixture
def totals(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """Returns a list. When the console's bar ends, the bar's position and total, in steps, are added to the list."""
    seen: list[tuple[int, int]] = []
    total = shared.total_tqdm
    clear = total.clear

    def recording() -> None:
        seen.append((total._tqdm.n, total._tqdm.total))
        clear()

    monkeypatch.setattr(shared.cmd_opts, "disable_console_progressbars", False)
    monkeypatch.setattr(total, "clear", recording)
    yield seen
    clear()


@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize("sampler", [data.name for data in sd_samplers.all_samplers])
def test_the_bar_on_the_console_ends_at_its_total(
    webui: Webui, totals: list[tuple[int, int]], sampler: str, iterations: int
) -> None:
    webui.job({**BALANCED, "scale": 3, "stages": "1,2,3"}, sampler_name=sampler, steps=10, n_iter=iterations)
    assert len(totals) == 1
    done, total = totals[0]
    # most samplers run 10 steps in the base pass and 5 in each of the two stages, but DDIM runs only 9 and 4
    assert done == total >= iterations * (9 + 2 * 4)


@pytest.mark.parametrize("redraw", [False, True])
def test_the_bar_on_the_console_ends_at_its_total_in_img2img(
    webui: Webui, totals: list[tuple[int, int]], redraw: bool
) -> None:
    """The stage runs 8 steps. If the upload is redrawn, img2img runs 5 of its 8 steps first: int(0.5 * 8) + 1."""
    settings = {**BALANCED, "img2img_first": redraw, "denoising_strength": 1.0}
    webui.job(settings, Image.new("RGB", (64, 64)), steps=8, denoising_strength=0.5)
    assert totals == [(13, 13) if redraw else (8, 8)]


def test_the_bar_on_the_console_ends_at_its_total_if_a_stage_fails(
    webui: Webui, totals: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, reported: Reports
) -> None:
    """The base pass and the first stage run 6 steps each. The second stage fails in its first step."""
    reported.expect("injected")
    unet = webui.small.unet

    def failing(x: Any, *args: Any) -> Any:
        if "2/2" in (shared.state.textinfo or ""):
            raise RuntimeError("injected")
        return unet(x, *args)

    monkeypatch.setattr(webui.small, "unet", failing, raising=False)
    webui.job({"enabled": True, "preset": "Paper", "scale": 3}, steps=6)
    assert totals == [(12, 12)]


def test_each_image_of_a_grid_adds_the_steps_of_its_stages(webui: Webui, totals: list[tuple[int, int]]) -> None:
    """The X/Y/Z plot sets the total to the steps of all base images. Each job adds the steps of its stages.

    The grid has two images. The base pass and the stage of each image run 6 steps.
    """
    total: Callable[[int], None] = shared.total_tqdm.updateTotal
    seen: list[int] = []

    def run_grid() -> None:
        total(2 * 6)
        for _ in range(2):
            webui.job({"enabled": True, "preset": "Paper", "scale": 2}, steps=6)
            seen.append(shared.total_tqdm._tqdm.total)

    clear = shared.total_tqdm.clear
    shared.total_tqdm.clear = lambda: None
    try:
        run_grid()
        shared.total_tqdm._tqdm.refresh()
        assert seen == [18, 24]
        assert shared.total_tqdm._tqdm.n == 24
    finally:
        shared.total_tqdm.clear = clear
        clear()


@pytest.mark.parametrize(
    ("settings", "calls_of_withdraw"),
    [
        pytest.param({"enabled": True, "scale": 2}, 0, id="with stages"),
        pytest.param({"enabled": False}, 1, id="off"),
        pytest.param({"enabled": True, "scale": 99}, 1, id="not valid"),
        pytest.param({"enabled": True, "tiling": True}, 1, id="refused"),
    ],
)
def test_the_stages_that_a_grid_expects_are_withdrawn_if_a_request_runs_no_stages(
    webui: Webui, reported: Reports, monkeypatch: pytest.MonkeyPatch, settings: Any, calls_of_withdraw: int
) -> None:
    """A grid has one request for each of its images. The first request adds the stages of all requests to the bar.

    `withdraw` removes the stages of the later requests again.
    """
    if calls_of_withdraw and settings["enabled"]:
        reported.expect("99" if "scale" in settings else "Tiling")
    calls: list[None] = []
    monkeypatch.setattr(webui_state, "withdraw", lambda: calls.append(None))
    settings = dict(settings)
    webui.job(settings, steps=2, tiling=settings.pop("tiling", False))
    assert len(calls) == calls_of_withdraw
