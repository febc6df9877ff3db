"""What the live line warns of: hours, and pictures that this computer has no room for."""

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

from lib_demofusion.host import options
from lib_demofusion.host.backends.families import Family
from lib_demofusion.host.panel import limits, line, warnings
from lib_demofusion.host.panel.tab import TabValues
from lib_demofusion.host.pictures import vae
from lib_demofusion.settings.reading import parse_settings

GIB = 1 << 30


@pytest.fixture
def free(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is free on a computer, in bytes, with Stable Diffusion's decoder loaded."""
    room = SimpleNamespace(device=8 * GIB, memory=16 * GIB, disk=100 * GIB)
    with torch.device("meta"):
        model = SimpleNamespace(first_stage_model=SimpleNamespace(decoder=Decoder(128, groups=32)))
    for module in (limits, vae):
        monkeypatch.setattr(module, "available_bytes", lambda: room.memory)
    monkeypatch.setattr(vae, "disk_usage", lambda folder: SimpleNamespace(free=room.disk))
    monkeypatch.setattr(limits, "free_bytes", lambda device: room.device)
    monkeypatch.setattr(line.timing, "loaded_model", lambda: model)
    return room


def warned_of(**tab: Any) -> list[str]:
    """Those in the line of a stage to 4096x4096."""
    text = html.unescape(
        line.describe([{"enabled": True, "scale": 4}], TabValues(**{"width": 1024, "height": 1024, **tab}))
    )
    return [warning for warning in warnings.WARNINGS if warning in text]


def test_an_ordinary_computer_is_left_in_peace(free: Any) -> None:
    assert warned_of() == []


@pytest.mark.parametrize(("seconds", "warned"), [(3500, False), (3700, True), (None, False)])
def test_a_run_of_more_than_an_hour(
    free: Any, monkeypatch: pytest.MonkeyPatch, seconds: float | None, warned: bool
) -> None:
    monkeypatch.setattr(line.timing, "seconds", lambda cells: seconds)
    assert warned_of() == [warnings.LONG] * warned


def test_the_pictures_themselves(free: Any) -> None:
    """Four copies of 4096x4096 in 12 bytes are 0.75 GiB, of each picture of a batch."""
    free.memory = 5 * GIB
    assert warned_of(batch_size=6) == []
    assert warned_of(batch_size=7) == [warnings.NO_MEMORY]
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
def test_what_the_decoder_holds(free: Any, room: dict[str, int], warned: bool) -> None:
    """About 10 GiB at 4096x4096, which must lie on the device, in memory or on the disk."""
    free.__dict__.update(room)
    assert warned_of() == [warnings.NO_ROOM] * warned


def test_a_missing_folder_for_temporary_files_breaks_no_line(
    free: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The decoder takes another; a real disk is asked, which has some room, and none is needed in memory."""
    monkeypatch.setattr(vae, "disk_usage", shutil.disk_usage)
    monkeypatch.setattr(shared.opts, "temp_dir", str(tmp_path / "gone"), raising=False)
    assert warned_of() == []
    free.memory = 4 * GIB
    assert set(warned_of()) <= {warnings.NO_ROOM}


def test_a_decoder_that_is_not_ours_is_left_to_the_webui(free: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    free.memory = free.disk = free.device = GIB
    for model in (None, SimpleNamespace(first_stage_model=SimpleNamespace(decoder=torch.nn.Identity()))):
        monkeypatch.setattr(line.timing, "loaded_model", lambda model=model: model)
        assert warned_of() == []


FEW = {"steps": 6, "cfg_scale": 1.5}


def said(args: dict[str, Any], **tab: Any) -> str:
    """The line for a panel that holds these values."""
    values = {**asdict(parse_settings(args)), "enabled": True}
    return html.unescape(line.describe(list(values.values()), TabValues(**tab)))


def test_turbo_is_told_of_where_it_takes_over(webui: Webui) -> None:
    assert warnings.TURBO_CHOSEN in said({"preset": "Balanced"}, **FEW)
    # six steps, of which a stage runs two on nine tiles
    assert said({"preset": "Balanced"}, **FEW).partition("<br>")[0] == said({"preset": "Turbo"}, **FEW)
    for args, tab in (({"preset": "Balanced"}, {}), ({"preset": "Balanced", "overlap": 0.5}, FEW), ({}, {})):
        assert warnings.TURBO_CHOSEN not in said(args, **tab)


def test_what_few_steps_cannot_do_is_warned_of(webui: Webui) -> None:
    assert warnings.TURBO_BETTER in said({"preset": "Paper"}, **FEW)
    assert warnings.TURBO_BETTER in said({"preset": "Balanced", "denoising_strength": 0.9}, **FEW)
    for args in ({"preset": "Turbo"}, {"preset": "Balanced", "overlap": 0.5}, {"preset": "Fast"}):
        assert warnings.TURBO_BETTER not in said(args, **FEW)
    assert warnings.TURBO_BETTER not in said({"preset": "Paper"})


def test_a_model_with_built_in_guidance_needs_no_higher_cfg_scale(
    webui: Webui, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flux.1 dev runs at CFG 1; with few steps the sentence is as true of it as of others."""
    assert warnings.TURBO_BETTER in said({"preset": "Paper"}, steps=20, cfg_scale=1)
    monkeypatch.setattr(warnings.timing, "loaded_model", lambda: SimpleNamespace())
    monkeypatch.setattr(warnings.host(), "family", lambda model: Family("A", flow=True, distilled=True))
    assert warnings.TURBO_BETTER not in said({"preset": "Paper"}, steps=20, cfg_scale=1)
    assert warnings.TURBO_BETTER in said({"preset": "Paper"}, steps=6, cfg_scale=1)


@pytest.mark.parametrize(
    ("on", "asked", "used"), [(True, None, "Turbo"), (False, None, "Fast"), (True, "Fast", "Fast")]
)
def test_the_run_takes_it_too(
    webui: Webui, monkeypatch: pytest.MonkeyPatch, on: bool, asked: str | None, used: str
) -> None:
    """Unless a program names another preset, or the settings page forbids it."""
    monkeypatch.setattr(shared.opts, options.DEFAULT_PRESET, "Fast", raising=False)
    monkeypatch.setattr(shared.opts, options.FEW_STEPS, on, raising=False)
    done = webui.job({"enabled": True, "scale": 2, **({"preset": asked} if asked else {})}, cfg_scale=1.5)
    assert f"DemoFusion preset: {used}" in done.info
    assert f"DemoFusion denoising strength: {0.3 if used == 'Turbo' else 0.25}" in done.info
