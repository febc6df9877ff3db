"""Tests that default values of the panel are restored after the webui has saved them in ui-config.json."""

from __future__ import annotations

from typing import Any

import pytest
from in_process import BASE, Webui
from modules import scripts

from lib_demofusion.host.common import user_presets
from lib_demofusion.host.panel.build import CONTROLS
from lib_demofusion.settings.fields import OF_THE_REQUEST, SPECS

TABS = ("txt2img", "img2img")


def controls(tab: str) -> dict[str, Any]:
    """Returns the panel's controls by field."""
    runner = getattr(scripts, f"scripts_{tab}")
    script = next(script for script in runner.alwayson_scripts if script.title() == "DemoFusion Hires")
    return dict(zip(CONTROLS, script.panel.controls))


def labels(component: Any) -> list[str]:
    """Returns the labels of the choices of a radio or dropdown, as `radio_choices` in modules/ui_loadsave.py does."""
    return [entry[0] if isinstance(entry, tuple) else entry for entry in getattr(component, "choices", [])]


def after_apply(component: Any, value: Any) -> Any:
    """Returns a control's value after "Apply" in Settings > Defaults has saved `value` and the page is built again.

    This imitates modules/ui_loadsave.py. For a control with choices, `iter_changes` treats an integer as the index of a
    choice, and True and False are integers too. `add_component` ignores a saved value that is not one of the choices,
    and converts the value of a number field to a float.
    """
    texts = labels(component)
    saved = texts[value] if isinstance(value, int) and texts else value
    if texts:
        return saved if saved in texts else component.value
    return float(saved) if component.get_block_name() == "number" else saved


def possible(name: str, component: Any) -> list[Any]:
    """Returns values that the page can send: all choices, False and True, or the lowest and the highest value."""
    spec = SPECS[name]
    if labels(component):
        return [entry[1] if isinstance(entry, tuple) else entry for entry in component.choices]
    return [False, True] if spec.kind is bool else [spec.minimum, spec.maximum]


@pytest.mark.parametrize("tab", TABS)
def test_saved_default_values_are_restored(webui: Webui, tab: str) -> None:
    known, kept = user_presets.known_choices(), []
    for name, component in controls(tab).items():
        if getattr(component, "do_not_save_to_config", False):
            continue
        kept.append(name)
        for value in possible(name, component):
            sent = component.preprocess(value)
            saved = after_apply(component, sent)
            assert SPECS[name].parse(name, saved, known) == SPECS[name].parse(name, sent, known), (name, value)
    # the panel has no control for `view_batch`, and the field `preset` must not be stored in ui-config.json
    assert set(kept) == OF_THE_REQUEST - {"preset", "view_batch"}


@pytest.mark.parametrize("tab", TABS)
def test_a_run_accepts_the_text_of_a_choice(webui: Webui, tab: str) -> None:
    """ui-config.json contains the text of the selected choice, although the value of the choice is True or False."""
    component = controls(tab)["img2img_first"]
    saved = after_apply(component, "Upscale the image as it is")
    picture = webui.job().images[0] if tab == "img2img" else None
    result = webui.job({"enabled": True, "scale": 2, "img2img_first": saved}, init_image=picture)
    assert "DemoFusion error" not in result.infotexts[0]
    assert result.images[0].width == 2 * BASE
