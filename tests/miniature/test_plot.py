"""Tests the axes that the extension adds to the X/Y/Z plot, with an imitation of the webui's plot script."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from modules import scripts

from lib_demofusion.host.panel import xyz
from lib_demofusion.settings.fields import SPECS


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.usefixtures("webui")
def test_the_axes_exist_once_when_the_plot_builds_its_controls(monkeypatch: pytest.MonkeyPatch, first: bool) -> None:
    """The X/Y/Z plot reads the list of axes when the plot builds its controls, so the list must be complete by then.

    The webui builds the controls several times: for the tabs of the page, and for the API. Each time, the list must
    contain each of DemoFusion's axes once. `first` means that the plot's script is loaded before DemoFusion's script.
    """
    axes: list[Any] = []
    shown: list[list[str]] = []

    class Plot(scripts.Script):
        def show(self, is_img2img: bool) -> Any:
            return scripts.AlwaysVisible

        def title(self) -> str:
            return "X/Y/Z plot"

        def ui(self, is_img2img: bool) -> list[Any]:
            shown.append([axis.label for axis in axes])
            return []

    module = SimpleNamespace(AxisOption=SimpleNamespace, axis_options=axes)
    plot = SimpleNamespace(script_class=Plot, path="/webui/scripts/xyz_grid.py", module=module)
    known = list(scripts.scripts_data)
    monkeypatch.setattr(scripts, "scripts_data", [plot, *known] if first else [*known, plot])
    for is_img2img in (False, False, True):
        runner = scripts.ScriptRunner()
        runner.initialize_scripts(is_img2img)
        with gr.Blocks():
            runner.setup_ui()
    (labels, *others) = shown
    assert all(label.startswith(xyz.PREFIX) for label in labels)
    assert len(set(labels)) == len(labels) == len(SPECS)
    assert others == [labels, labels]
