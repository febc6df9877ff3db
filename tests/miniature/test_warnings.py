"""Tests the warnings of the live line: long runs, and images that do not fit in this computer's memory."""

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
from lib_demofusion.host.images import vae
from lib_demofusion.host.panel import line
from lib_demofusion.host.panel.tab import TabValues
from lib_demofusion.settings.reading import parse_settings

GIB = 1 << 30


@pytest.fixture
def free(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the free bytes of a computer, with Stable Diffusion's decoder loaded."""
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
    """Returns the warnings in the line for a stage to 4096x4096."""
    text = html.unescape(
        line.describe([{"enabled": True, "scale": 4}], TabValues(**{"width": 1024, "height": 1024, **tab}))
    )
    return [warning for warning in line.WARNINGS if warning in text]


def test_an_ordinary_computer_gets_no_warning(free: Any) -> None:
    assert warned_of() == []


@pytest.mark.parametrize(("seconds", "warned"), [(3500, False), (3700, True), (None, False)])
def test_a_run_of_more_than_an_hour_gets_a_warning(
    free: Any, monkeypatch: pytest.MonkeyPatch, seconds: float | None, warned: bool
) -> None:
    monkeypatch.setattr(line.timing, "seconds", lambda cells: seconds)
    assert warned_of() == [line.LONG] * warned


def test_the_memory_of_the_images_is_checked(free: Any) -> None:
    """Four copies of a 4096x4096 image with 12 bytes per pixel are 0.75 GiB, for each image of a batch."""
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
def test_the_memory_of_the_decoder_is_checked(free: Any, room: dict[str, int], warned: bool) -> None:
    """About 10 GiB at 4096x4096, which must fit on the device, in memory or on the disk."""
    free.__dict__.update(room)
    assert warned_of() == [line.NO_ROOM] * warned


def test_the_line_works_without_a_folder_for_temporary_files(
    free: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The decoder uses another folder. The test uses the real disk, which has some space, and needs no memory."""
    monkeypatch.setattr(vae, "disk_usage", shutil.disk_usage)
    monkeypatch.setattr(shared.opts, "temp_dir", str(tmp_path / "gone"), raising=False)
    assert warned_of() == []
    free.memory = 4 * GIB
    assert set(warned_of()) <= {line.NO_ROOM}


def test_a_decoder_of_the_webui_is_not_checked(free: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    free.memory = free.disk = free.device = GIB
    for model in (None, SimpleNamespace(first_stage_model=SimpleNamespace(decoder=torch.nn.Identity()))):
        monkeypatch.setattr(line.timing, "loaded_model", lambda model=model: model)
        assert warned_of() == []


FEW = {"steps": 6, "cfg_scale": 1.5}


def said(args: dict[str, Any], **tab: Any) -> str:
    """Returns the line for a panel with these values."""
    values = {**asdict(parse_settings(args)), "enabled": True}
    return html.unescape(line.describe(list(values.values()), TabValues(**tab)))


def test_the_line_reports_the_switch_to_turbo(webui: Webui) -> None:
    turbo = {"preset": "Turbo"}
    assert line.TURBO_CHOSEN in said(turbo, **FEW)
    for args, tab in ((turbo, {**FEW, "preset_picked": True}), (turbo, {}), ({"preset": "Balanced"}, FEW)):
        assert line.TURBO_CHOSEN not in said(args, **tab)


def test_the_line_describes_the_preset_that_the_panel_shows(webui: Webui) -> None:
    """A run uses the panel's values, even if another preset would suit a few-step model better."""
    lines = {preset: said({"preset": preset}, **FEW, preset_picked=True) for preset in ("Balanced", "Fast", "Turbo")}
    assert len(set(lines.values())) == 3


def test_a_denoising_strength_too_high_for_few_steps_is_warned_of(webui: Webui) -> None:
    assert line.TURBO_BETTER in said({"preset": "Paper"}, **FEW)
    assert line.TURBO_BETTER in said({"preset": "Balanced", "denoising_strength": 0.9}, **FEW)
    for args in ({"preset": "Turbo"}, {"preset": "Balanced", "overlap": 0.5}, {"preset": "Fast"}):
        assert line.TURBO_BETTER not in said(args, **FEW)
    assert line.TURBO_BETTER not in said({"preset": "Paper"})


def test_the_cfg_scale_of_a_model_with_built_in_guidance_is_ignored(
    webui: Webui, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flux.1 dev runs at CFG 1 with any number of steps."""
    assert line.TURBO_BETTER not in said({"preset": "Paper"}, steps=6, cfg_scale=5)
    monkeypatch.setattr(line.timing, "loaded_model", lambda: SimpleNamespace())
    monkeypatch.setattr(line.host(), "family", lambda model: Family("A", flow=True, distilled=True))
    assert line.TURBO_BETTER not in said({"preset": "Paper"}, steps=20, cfg_scale=1)
    assert line.TURBO_BETTER in said({"preset": "Paper"}, steps=6, cfg_scale=5)


def test_a_refusal_is_shown_without_sizes(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "512x512 → 1024x1024" in said({"preset": "Fast"})
    monkeypatch.setattr(shared.opts, "tiling", True)
    refused = said({"preset": "Fast"})
    assert "Tiling" in refused
    assert "1024" not in refused
    assert line.TIMES_BASE not in refused
