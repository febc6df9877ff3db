"""Tests API requests: arguments by position and by name, the preset, and messages in the infotext."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from in_process import BASE, Webui, sizes
from modules import infotext_utils, jobs, processing, scripts, shared
from reports import Reports

from lib_demofusion.host.common import options
from lib_demofusion.settings.fields import PRESET_FIELDS
from lib_demofusion.settings.presets import DEFAULT_PRESET
from lib_demofusion.settings.reading import from_infotext, preset_values

FEW = {"steps": 4, "cfg_scale": 1.5}
"""Typical values of "Sampling steps" and "CFG Scale" for a few-step model."""


def positional(*values: Any) -> list[Any]:
    """Returns the arguments that the script receives from an API request with these positional values.

    For missing values, the webui's API uses the values of the controls that `ui` returns (modules/api/api.py,
    init_default_script_args).
    """
    script = next(script for script in scripts.scripts_txt2img.alwayson_scripts if script.name == "demofusion hires")
    with gr.Blocks():
        defaults = [control.value for control in script.ui(script.is_img2img)]
    return [*values, *defaults[len(values) :]]


def params(result: processing.Processed) -> dict[str, Any]:
    """Returns the parameters in the infotext of the only image."""
    (text,) = result.infotexts
    return infotext_utils.parse_generation_parameters(text)


@pytest.mark.parametrize("preset", ["Fast", "Balanced", "Turbo"])
@pytest.mark.parametrize("tab", [{}, FEW], ids=["many steps", "few steps"])
def test_a_preset_as_second_argument_has_the_same_result_as_a_preset_in_a_dict(
    webui: Webui, preset: str, tab: dict[str, float]
) -> None:
    one = webui.job(positional(True, preset), **tab)
    other = webui.job({"enabled": True, "preset": preset}, **tab)
    assert sizes(one) == [2 * BASE]
    assert one.infotexts == other.infotexts
    assert one.images[0].tobytes() == other.images[0].tobytes()
    assert params(one)["DemoFusion preset"] == preset
    assert {name: from_infotext(name, params(one)) for name in PRESET_FIELDS} == preset_values(preset)


def test_the_preset_provides_positional_values_that_are_none_or_missing(webui: Webui) -> None:
    one = webui.job(positional(True, "Fast", None, 3))
    assert one.infotexts == webui.job({"enabled": True, "preset": "Fast", "hires_steps": 3}).infotexts
    assert params(one)["DemoFusion preset"] == "Fast (changed)"


def test_a_request_without_arguments_does_not_use_demofusion(webui: Webui) -> None:
    assert webui.job(positional()).infotexts == webui.job().infotexts


def test_building_the_controls_for_the_api_does_not_change_the_page(webui: Webui) -> None:
    script = next(script for script in scripts.scripts_txt2img.alwayson_scripts if script.name == "demofusion hires")
    before = script.panel, script.infotext_fields, [control.value for control in script.panel.controls]
    assert positional() == [None] * len(script.panel.controls)
    assert before == (script.panel, script.infotext_fields, [control.value for control in script.panel.controls])


@pytest.mark.parametrize(
    ("args", "fields"),
    [
        ([{"scale": 2}], "scale"),
        ([{"stages": "3,2", "enabled": None, "preset": "Fast"}], "stages, preset"),
        ([None, "Fast"], "preset"),
    ],
    ids=str,
)
def test_a_note_explains_that_fields_without_enabled_have_no_effect(webui: Webui, args: list[Any], fields: str) -> None:
    result = webui.job(positional(*args))
    note = f'DemoFusion is off, because the request contains {fields} but not "enabled": true'
    assert sizes(result) == [BASE]
    assert params(result)["DemoFusion note"] == note
    assert note in result.comments
    # pasting this infotext does not enable DemoFusion
    assert not from_infotext("enabled", params(result))


MADE = {"enabled": True, "preset": "Balanced", "scale": 1.5, "overlap": 0.25, "keep_colors": True}


@pytest.fixture
def of_infotext(webui: Webui) -> list[Any]:
    """Returns the script's arguments that the webui's API reads from an infotext of an image with the settings MADE.

    If the request has arguments for the script too, these replace the first arguments from the infotext
    (modules/api/api.py, init_script_args).
    """
    script = next(script for script in scripts.scripts_txt2img.alwayson_scripts if script.name == "demofusion hires")
    made = params(webui.job(MADE))
    return [read(made) for control, read in script.infotext_fields if control in script.panel.controls]


@pytest.mark.parametrize(
    ("given", "equivalent"),
    [
        ({"enabled": True}, MADE),
        ({}, MADE),
        ({"scale": 2}, {**MADE, "scale": 2}),
        ({"enabled": True, "keep_colors": False, "overlap": None}, {**MADE, "keep_colors": False}),
        ({"preset": "Turbo"}, {"enabled": True, "preset": "Turbo", "scale": 1.5}),
        ({"preset": "Turbo", "overlap": 0.1}, {"enabled": True, "preset": "Turbo", "scale": 1.5, "overlap": 0.1}),
        ({"enabled": False, "scale": 2}, {}),
    ],
    ids=str,
)
def test_the_fields_of_a_dict_replace_values_from_the_infotext(
    webui: Webui, of_infotext: list[Any], given: dict[str, Any], equivalent: dict[str, Any]
) -> None:
    """A request with the infotext and the dict `given` must equal a request with only the dict `equivalent`."""
    one, other = webui.job([given, *of_infotext[1:]]), webui.job(equivalent)
    assert one.infotexts == other.infotexts
    assert one.images[0].tobytes() == other.images[0].tobytes()


def test_an_invalid_argument_after_the_dict_is_reported(webui: Webui, reported: Reports) -> None:
    reported.expect("preset: {'scale': 3} is not valid")
    assert sizes(webui.job(positional({"enabled": True}, {"scale": 3}))) == [BASE]


@pytest.mark.parametrize(("name", "shown"), [("", "''"), (" ", "' '"), ("scael", "'scael'"), ("a = b", "'a = b'")])
def test_the_name_of_an_unknown_field_is_quoted_in_the_message(
    webui: Webui, reported: Reports, name: str, shown: str
) -> None:
    reported.expect(f"the field {shown} does not exist")
    result = webui.job({"enabled": True, name: 1})
    assert sizes(result) == [BASE]
    assert params(result)["DemoFusion error"].startswith(
        f"the field {shown} does not exist (its value is 1). Use the fields "
    )


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ({}, "Turbo"),
        ({"preset": "Fast"}, "Fast"),
        ({"preset": "Balanced"}, "Balanced"),
        ({"overlap": 0.3}, "Balanced (changed)"),
    ],
    ids=str,
)
def test_turbo_is_used_only_if_the_request_contains_neither_a_preset_nor_fields_of_a_preset(
    webui: Webui, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], used: str
) -> None:
    monkeypatch.setattr(shared.opts, options.DEFAULT_PRESET, "Balanced", raising=False)
    text = params(webui.job({"enabled": True, **given}, **FEW))
    assert text["DemoFusion preset"] == used
    note = text.get("DemoFusion note", "")
    assert ("the preset Turbo is used instead of Balanced" in note) == (used == "Turbo")


def test_a_setting_prevents_the_automatic_use_of_turbo(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.opts, options.FEW_STEPS, False, raising=False)
    assert params(webui.job({"enabled": True}, **FEW))["DemoFusion preset"] == DEFAULT_PRESET


@pytest.mark.parametrize("few", [{"steps": 10, "cfg_scale": 7.0}, {"steps": 30, "cfg_scale": 2.0}], ids=str)
def test_few_steps_alone_or_a_low_cfg_scale_alone_do_not_change_the_preset(webui: Webui, few: dict[str, float]) -> None:
    assert params(webui.job({"enabled": True}, **few))["DemoFusion preset"] == DEFAULT_PRESET


def test_all_images_of_a_plot_over_steps_have_the_same_preset(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> None:
    plot = SimpleNamespace(title=lambda: "X/Y/Z plot")
    monkeypatch.setattr(scripts.scripts_txt2img, "selectable_scripts", [plot])
    used = set()
    for steps in (10, 11):
        p = webui.request([1, {"enabled": True}], steps=steps, cfg_scale=1.5)
        used.add(params(jobs.execute(p))["DemoFusion preset"])
    assert used == {DEFAULT_PRESET}


def test_a_run_from_the_page_uses_the_displayed_preset(webui: Webui) -> None:
    script = next(script for script in scripts.scripts_txt2img.alwayson_scripts if script.name == "demofusion hires")
    shown = [control.value for control in script.panel.controls]
    assert params(webui.job([True, *shown[1:]], **FEW))["DemoFusion preset"] == DEFAULT_PRESET
