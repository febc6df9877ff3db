"""Tests which infotexts contain a note or an error. This depends on the time at which a job reports the text."""

from __future__ import annotations

from typing import Any

import pytest
from in_process import BASE, Webui, interrupt_at, sizes
from modules import infotext_utils, processing
from reports import Reports

from lib_demofusion.host import script, stage_loop
from lib_demofusion.host.common.messages import report_note, report_problem
from lib_demofusion.host.job import Job
from lib_demofusion.method import stages

TWO_STAGES = {"enabled": True, "preset": "Paper", "scale": 3, "return_stages": True}
"""Settings for two stages. A job returns the final image, the base image, and the image of the first stage."""


def entries(result: processing.Processed, key: str) -> list[str | None]:
    """Returns the value of `DemoFusion {key}` in each infotext, or None for an infotext without this key."""
    texts = [infotext_utils.parse_generation_parameters(text) for text in result.infotexts]
    return [text.get(f"DemoFusion {key}") for text in texts]


def test_a_note_that_is_reported_before_the_first_iteration_is_in_the_infotext_of_every_image(
    webui: Webui, monkeypatch: pytest.MonkeyPatch
) -> None:
    def default_preset(p: Any, *args: Any) -> str:
        report_note(p, "of the request")
        return "Paper"

    monkeypatch.setattr(script, "_default_preset", default_preset)
    result = webui.job(TWO_STAGES, batch_size=2, n_iter=2)
    # four final images, and then for each iteration two base images and two images of the first stage
    assert sizes(result) == [3 * BASE] * 4 + [BASE, BASE, 2 * BASE, 2 * BASE] * 2
    assert entries(result, "note") == ["of the request"] * 12


@pytest.mark.parametrize("hook", ["before_base", "after_base"])
def test_reports_of_an_iteration_are_in_the_infotexts_of_the_images_of_this_iteration(
    webui: Webui, monkeypatch: pytest.MonkeyPatch, hook: str, reported: Reports
) -> None:
    reported.expect("error 0", "error 1")

    def report(p: Any) -> None:
        report_note(p, f"note {p.iteration}")
        report_problem(p, f"error {p.iteration}")

    original = getattr(Job, hook)

    def reporting(self: Job, p: Any, *args: Any) -> Any:
        # `before_base` removes the reports of the previous iteration, so the test reports after this hook
        if hook == "before_base":
            original(self, p)
            report(p)
            return None
        report(p)
        return original(self, p, *args)

    monkeypatch.setattr(Job, hook, reporting)
    result = webui.job(TWO_STAGES, n_iter=2)
    # two final images, one for each iteration; then two images of the first iteration, and two of the second
    for key in ("note", "error"):
        first, second = f"{key} 0", f"{key} 1"
        assert entries(result, key) == [first, second, first, first, second, second]


def test_an_error_at_the_end_of_a_stage_is_in_every_infotext(
    webui: Webui, monkeypatch: pytest.MonkeyPatch, reported: Reports
) -> None:
    reported.expect("injected")

    def fail(*args: Any) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(stages, "finish_stage", fail)
    result = webui.job(TWO_STAGES)
    assert sizes(result) == [BASE, BASE]
    (error, same) = entries(result, "error")
    assert error is not None
    assert error == same
    assert error.startswith("stage 1 of 2")
    assert all(text == image.info["parameters"] for image, text in zip(result.images[1:], result.infotexts[1:]))


def test_an_interruption_is_only_in_the_infotext_of_the_final_image(
    webui: Webui, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interruption comes at the end of the first stage, so the final image is the image of this stage."""
    interrupt_at(monkeypatch, stages, "finish_stage")
    result = webui.job(TWO_STAGES)
    assert sizes(result) == [2 * BASE, BASE, 2 * BASE]
    final, *others = entries(result, "stopped")
    assert final is not None
    assert others == [None, None]


def test_a_second_error_does_not_replace_the_first(
    webui: Webui, monkeypatch: pytest.MonkeyPatch, reported: Reports
) -> None:
    """First, showing the base image in the gallery fails. Then the first stage fails."""
    reported.expect("injected")

    def fail(*args: Any) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(stage_loop, "stage_images", fail)
    monkeypatch.setattr(stages, "finish_stage", fail)
    (error,) = entries(webui.job(TWO_STAGES), "error")
    assert error is not None
    assert [part.partition(" failed")[0] for part in error.split("; ")] == [
        "showing the base image (64x64)",
        "stage 1 of 2 (128x128)",
    ]


def test_the_same_text_is_reported_only_once(webui: Webui) -> None:
    p = processing.StableDiffusionProcessingTxt2Img(outpath_samples=webui.folder)
    for note in ("one; two", "two", "one; two", "three", "three"):
        report_note(p, note)
    assert p.extra_generation_params == {"DemoFusion note": "one; two; three"}
