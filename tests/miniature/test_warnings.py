"""Tests the summary line, which is below the panel's title.

The tests cover warnings of long runs and of too little memory, and texts for few-step models.
"""

from __future__ import annotations

import html
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from autoencoders import Decoder
from in_process import Webui
from modules import shared

from lib_demofusion.host.backends.families import Family
from lib_demofusion.host.common import options
from lib_demofusion.host.images import vae
from lib_demofusion.host.panel import line
from lib_demofusion.host.panel.tab import TabValues
from lib_demofusion.settings.reading import parse_settings

GIB = 1 << 30


@pytest.fixture
def free(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns the free bytes of a simulated computer, which a test can change. The model has the decoder of SD 1.5.

    `device` is the free memory of the GPU, `memory` that of the computer, and `disk` the free disk space.
    """
    room = SimpleNamespace(device=8 * GIB, memory=16 * GIB, disk=100 * GIB)
    with torch.device("meta"):
        model = SimpleNamespace(first_stage_model=SimpleNamespace(decoder=Decoder(128, groups=32)))
    for module in (line, vae):
        monkeypatch.setattr(module, "available_bytes", lambda: room.memory)
    monkeypatch.setattr(vae, "disk_usage", lambda folder: SimpleNamespace(free=room.disk))
    monkeypatch.setattr(line, "free_bytes", lambda device: room.device)
    monkeypatch.setattr(line.timing, "loaded_model", lambda: model)
    return room


def warned_of(**tab: Any) -> list[str]:
    """Returns the warnings in the summary line. Without arguments, the final image has 4096x4096 pixels."""
    text = html.unescape(
        line.describe([{"enabled": True, "scale": 4}], TabValues(**{"width": 1024, "height": 1024, **tab}))
    )
    return [warning for warning in line.WARNINGS if warning in text]


def test_there_is_no_warning_on_an_ordinary_computer(free: Any) -> None:
    assert warned_of() == []


@pytest.mark.parametrize(("seconds", "warned"), [(3500, False), (3700, True), (None, False)])
def test_the_summary_line_warns_of_a_run_of_more_than_an_hour(
    free: Any, monkeypatch: pytest.MonkeyPatch, seconds: float | None, warned: bool
) -> None:
    monkeypatch.setattr(line.timing, "seconds", lambda cells: seconds)
    assert warned_of() == [line.LONG] * warned


def test_the_memory_for_the_images_is_checked(free: Any) -> None:
    """Each image of a batch needs 0.75 GiB: four copies of 4096x4096 pixels, with 12 bytes for each pixel.

    The webui makes one batch after the other, so the number of batches does not matter.
    """
    free.memory = 5 * GIB
    assert warned_of(batch_size=6) == []
    assert warned_of(batch_size=7) == [line.NO_MEMORY]
    assert warned_of(batch_size=7, batch_count=1) == warned_of(batch_size=7, batch_count=9)


@pytest.mark.parametrize(
    ("room", "warned"),
    [
        ({"memory": 4 * GIB}, False),
        ({"memory": 4 * GIB, "disk": 4 * GIB}, True),
        ({"disk": 4 * GIB}, True),
        ({"disk": 4 * GIB, "memory": 24 * GIB}, False),
        ({"disk": 4 * GIB, "device": 40 * GIB}, False),
    ],
)
def test_the_memory_for_the_decoder_is_checked(free: Any, room: dict[str, int], warned: bool) -> None:
    """The decoder needs about 10 GiB for this image: on the device, in the computer's memory, or on the disk.

    It may use only 85 % of the device's free memory, 60 % of the computer's free memory, and 80 % of the free disk
    space. The 16 GiB of memory in `free` are therefore not enough, because 60 % of them are 9.6 GiB.
    """
    free.__dict__.update(room)
    assert warned_of() == [line.NO_ROOM] * warned


def test_the_summary_line_works_if_the_folder_for_temporary_files_does_not_exist(
    free: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The extension then uses the data folder. The test reads the free space of the real disk.

    With 4 GiB of memory, the result depends on this disk, so the test accepts a warning and no warning.
    """
    monkeypatch.setattr(vae, "disk_usage", shutil.disk_usage)
    monkeypatch.setattr(shared.opts, "temp_dir", str(tmp_path / "gone"), raising=False)
    assert warned_of() == []
    free.memory = 4 * GIB
    assert set(warned_of()) <= {line.NO_ROOM}


def test_a_decoder_of_an_unknown_layout_is_not_checked(free: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    free.memory = free.disk = free.device = GIB
    for model in (None, SimpleNamespace(first_stage_model=SimpleNamespace(decoder=torch.nn.Identity()))):
        monkeypatch.setattr(line.timing, "loaded_model", lambda model=model: model)
        assert warned_of() == []


FEW = {"steps": 6, "cfg_scale": 1.5}
"""Typical values of "Sampling steps" and "CFG Scale" for a few-step model."""


def shown(args: dict[str, Any], **tab: Any) -> str:
    """Returns the summary line for these settings in the panel and these values in the tab."""
    values = {**asdict(parse_settings(args)), "enabled": True}
    return html.unescape(line.describe(list(values.values()), TabValues(**tab)))


def test_the_summary_line_reports_the_switch_to_turbo(webui: Webui) -> None:
    turbo = {"preset": "Turbo"}
    assert line.TURBO_CHOSEN in shown(turbo, **FEW)
    for args, tab in ((turbo, {**FEW, "preset_picked": True}), (turbo, {}), ({"preset": "Balanced"}, FEW)):
        assert line.TURBO_CHOSEN not in shown(args, **tab)


@pytest.mark.parametrize("changed", [{options.DEFAULT_PRESET: "Turbo"}, {options.FEW_STEPS: False}])
def test_no_switch_is_reported_if_the_settings_page_chooses_turbo_or_prevents_the_switch(
    webui: Webui, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    for name, value in changed.items():
        monkeypatch.setattr(shared.opts, name, value, raising=False)
    assert line.TURBO_CHOSEN not in shown({"preset": "Turbo"}, **FEW)


def test_the_summary_line_describes_the_preset_that_the_panel_shows(webui: Webui) -> None:
    """A run uses the values of the panel, even if the preset Turbo would suit a few-step model better."""
    lines = {preset: shown({"preset": preset}, **FEW, preset_picked=True) for preset in ("Balanced", "Fast", "Turbo")}
    assert len(set(lines.values())) == 3


def test_the_summary_line_warns_if_the_denoising_strength_is_too_high_for_few_steps(webui: Webui) -> None:
    assert line.TURBO_BETTER in shown({"preset": "Paper"}, **FEW)
    assert line.TURBO_BETTER in shown({"preset": "Balanced", "denoising_strength": 0.9}, **FEW)
    for args in ({"preset": "Turbo"}, {"preset": "Balanced", "overlap": 0.5}, {"preset": "Fast"}):
        assert line.TURBO_BETTER not in shown(args, **FEW)
    assert line.TURBO_BETTER not in shown({"preset": "Paper"})


def test_the_cfg_scale_of_a_model_with_built_in_guidance_is_ignored(
    webui: Webui, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, Flux.1 dev uses a CFG scale of 1 with any number of steps, so only the steps are checked.

    The first assertion is for a model without built-in guidance. A CFG scale of 5 is too high for a few-step model.
    """
    assert line.TURBO_BETTER not in shown({"preset": "Paper"}, steps=6, cfg_scale=5)
    monkeypatch.setattr(line.timing, "loaded_model", lambda: SimpleNamespace())
    monkeypatch.setattr(line.host(), "family", lambda model: Family("A", flow=True, distilled=True))
    assert line.TURBO_BETTER not in shown({"preset": "Paper"}, steps=20, cfg_scale=1)
    assert line.TURBO_BETTER in shown({"preset": "Paper"}, steps=6, cfg_scale=5)


def test_if_the_job_is_refused_the_summary_line_contains_no_sizes(
    webui: Webui, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "512x512 → 1024x1024" in shown({"preset": "Fast"})
    monkeypatch.setattr(shared.opts, "tiling", True)
    refused = shown({"preset": "Fast"})
    assert "Tiling" in refused
    assert "1024" not in refused
    assert line.TIMES_BASE not in refused
