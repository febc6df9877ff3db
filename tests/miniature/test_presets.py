"""Tests presets that users save: the file of the presets, panels that open with a preset, and jobs with a preset."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from in_process import BASE, Webui, sizes
from modules import infotext_utils, paths_internal, scripts, shared
from reports import Reports

from lib_demofusion.host.common import options, user_presets
from lib_demofusion.host.integrations import refusals
from lib_demofusion.host.panel import build as panel
from lib_demofusion.host.panel import preset_row, xyz
from lib_demofusion.host.panel.line import describe
from lib_demofusion.host.panel.tab import TabValues
from lib_demofusion.settings.errors import SettingsError
from lib_demofusion.settings.fields import NAMES, PRESET_FIELDS, SPECS, Settings
from lib_demofusion.settings.presets import DEFAULT_PRESET, PRESETS
from lib_demofusion.settings.reading import from_infotext, preset_values

VALUES = {**preset_values("Paper"), "stages": "1,2", "sigma": 1.5}
"""The values of the preset that the tests save."""


def names() -> tuple[str, ...]:
    """Returns the names of all presets, built-in presets first."""
    return user_presets.known_choices().preset_names


def save(name: str, values: dict[str, Any]) -> str:
    """Saves a preset. Returns the name under which the preset is stored."""
    return user_presets.save(name, values, user_presets.known_choices())


@pytest.fixture
def file(webui: Webui, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the path of the file with the user's presets. The file does not exist yet."""
    monkeypatch.setattr(paths_internal, "data_path", str(tmp_path))
    # every job sets `paths_internal.data_path` to `webui.folder`
    monkeypatch.setattr(webui, "folder", tmp_path)
    return tmp_path / user_presets.FILE


@pytest.fixture
def default_preset(file: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Saves a preset, selects it as "Default preset" on the settings page, and returns its name."""
    monkeypatch.setattr(shared.opts, options.DEFAULT_PRESET, save("Mine", VALUES))
    return "Mine"


def test_a_saved_preset_is_read_from_the_file(file: Path) -> None:
    assert save("  Mine ", VALUES) == "Mine"
    assert json.loads(file.read_text(encoding="utf-8")) == {"Mine": VALUES}
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert user_presets.read(())[1] == []
    assert names()[-1] == "Mine"
    assert preset_values("Mine", user_presets.known_choices()) == VALUES


def test_the_reason_of_an_error_is_a_text_node_of_its_own(file: Path) -> None:
    """The webui translates whole text nodes, so the name of the preset must be in another text node than the reason."""
    with pytest.raises(user_presets.PresetError) as refused:
        user_presets.delete("Balanced")
    shown = preset_row._problem(refused.value)
    assert f"<span>{user_presets.BUILT_IN}</span>" in shown
    assert re.sub("<[^>]*>", "", shown) == f"{user_presets.BUILT_IN}: Balanced" == str(refused.value)


def test_a_preset_can_be_replaced_and_deleted(file: Path) -> None:
    save("Mine", VALUES)
    save("Ünsere", VALUES)
    save("Mine", {**VALUES, "sigma": 2.5})
    assert preset_values("Mine", user_presets.known_choices())["sigma"] == 2.5
    user_presets.delete("Mine")
    assert names()[-1] == "Ünsere"
    assert set(json.loads(file.read_text(encoding="utf-8"))) == {"Ünsere"}


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("Paper", user_presets.BUILT_IN),
        ("paper ", user_presets.BUILT_IN),
        ("", user_presets.NO_NAME),
        (" ", user_presets.NO_NAME),
        ("a\nb", user_presets.BAD_NAME),
        ("x" * 61, user_presets.BAD_NAME),
        ("Mine (changed)", user_presets.BAD_NAME),
    ],
)
def test_an_invalid_name_is_refused(file: Path, name: str, sentence: str) -> None:
    with pytest.raises(user_presets.PresetError, match=re.escape(sentence)):
        save(name, VALUES)
    assert not file.exists()


def test_built_in_presets_and_missing_presets_cannot_be_deleted(file: Path) -> None:
    with pytest.raises(user_presets.PresetError, match=user_presets.BUILT_IN):
        user_presets.delete("Paper")
    with pytest.raises(user_presets.PresetError, match=user_presets.NOT_SAVED):
        user_presets.delete("Mine")


def test_impossible_values_are_not_saved(file: Path) -> None:
    with pytest.raises(SettingsError, match="stages"):
        save("Mine", {**VALUES, "stages": "3,2"})
    assert not file.exists()


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"Mine"', "[" * 100_000, "\x00"])
def test_a_broken_file_is_reported_and_not_overwritten(file: Path, text: str) -> None:
    file.write_text(text)
    _, problems = user_presets.read(())
    assert len(problems) == 1
    assert str(file) in problems[0]
    for act in (lambda: save("Mine", VALUES), lambda: user_presets.delete("Mine")):
        with pytest.raises(user_presets.PresetError, match=user_presets.REPAIR):
            act()
    assert file.read_text() == text


@pytest.mark.parametrize(
    "entry",
    [1, None, [], "sigma", {"sigma": "big"}, {"sgima": 1}, {"sigma": {}}, {"scale": 2}, {"stages": "2,1"}],
    ids=str,
)
def test_an_invalid_entry_in_the_file_does_not_affect_the_other_entries(file: Path, entry: Any) -> None:
    file.write_text(json.dumps({"Bad": entry, "Paper": {"sigma": 5}, "Good": {"sigma": 2}}), encoding="utf-8")
    _, problems = user_presets.read(())
    assert [problem for problem in problems if "'Bad'" in problem]
    assert [problem for problem in problems if "'Paper'" in problem]
    assert names() == (*PRESETS, "Good")
    save("Mine", VALUES)
    assert json.loads(file.read_text(encoding="utf-8"))["Bad"] == entry


def test_a_folder_that_cannot_be_written_is_reported(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.parent.joinpath("file").write_text("")
    monkeypatch.setattr(paths_internal, "data_path", str(file.parent / "file"))
    monkeypatch.setattr(user_presets.storage, "read", lambda name: {})
    with pytest.raises(user_presets.PresetError, match=user_presets.NOT_WRITTEN):
        save("Mine", VALUES)
    assert "Mine" not in names()


def build(is_img2img: bool = False) -> dict[str, Any]:
    """Builds a panel. Maps the last part of the element id of each component to the component."""
    data = next(data for data in scripts.scripts_data if Path(data.path).name == "demofusion_hires.py")
    script = data.script_class()
    script.is_txt2img, script.is_img2img = not is_img2img, is_img2img
    with gr.Blocks() as blocks:
        script.ui(is_img2img)
    prefix = script.elem_id("")
    by_id = {getattr(block, "elem_id", None) or "": block for block in blocks.blocks.values()}
    return {elem_id.removeprefix(prefix): block for elem_id, block in by_id.items()}


def test_the_panel_has_a_control_for_every_field_of_a_preset() -> None:
    shown = {name for rows in (panel.ROWS, panel.ADVANCED_ROWS) for row in rows for name in row}
    assert set(PRESET_FIELDS) <= {*shown, *panel.UNSEEN}
    assert NAMES[:-1] == panel.CONTROLS
    # the section "Advanced" has at most ten controls, including the box for the name of a preset
    assert sum(map(len, panel.ADVANCED_ROWS)) + 1 <= 10


def test_the_panel_opens_with_the_built_in_default_preset(file: Path) -> None:
    components = build()
    assert {name: components[name].value for name in PRESET_FIELDS} == preset_values(DEFAULT_PRESET)
    assert components["preset"].value == DEFAULT_PRESET
    # if ui-config.json contained these values, the panel would not change when a new version changes the preset
    kept_out = ("preset", *PRESET_FIELDS, "preset_name", "preset_save", "preset_delete")
    assert all(components[name].do_not_save_to_config for name in kept_out)
    # for these fields, users can save their own default values
    assert not any(getattr(components[name], "do_not_save_to_config", False) for name in ("scale", "save_stages"))


def test_the_panel_opens_with_the_default_preset_of_the_settings_page(default_preset: str) -> None:
    components = build(is_img2img=True)
    assert {name: components[name].value for name in PRESET_FIELDS} == VALUES
    assert components["preset"].value == default_preset
    assert (default_preset, default_preset) in components["preset"].choices


def test_the_panel_shows_that_the_file_cannot_be_read(file: Path, reported: Reports) -> None:
    reported.expect(f"{user_presets.FILE} cannot be read")
    assert not build()["preset_problems"].visible
    file.write_text("<b>no</b> JSON")
    message = build()["preset_problems"]
    assert message.visible
    assert user_presets.FILE in message.value
    assert "<b>" not in message.value


@pytest.mark.parametrize("flag", ["hide_ui_dir_config", "freeze_settings", "share"])
def test_on_a_shared_server_presets_cannot_be_saved(file: Path, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    monkeypatch.setattr(shared, "cmd_opts", SimpleNamespace(**{flag: True}))
    components = build()
    assert not any(components[name].visible for name in ("preset_name", "preset_save", "preset_delete"))
    assert components["preset"].visible


def test_the_built_in_default_preset_is_used_if_the_selected_default_preset_no_longer_exists(
    default_preset: str, reported: Reports
) -> None:
    reported.expect(f"{options.DEFAULT_GONE} {default_preset}")
    user_presets.delete(default_preset)
    assert options.default_preset(user_presets.known_choices()) == DEFAULT_PRESET
    assert build()["preset"].value == DEFAULT_PRESET


def test_a_default_preset_that_no_longer_exists_is_reported(
    webui: Webui, default_preset: str, caplog: pytest.LogCaptureFixture, reported: Reports
) -> None:
    reported.expect(f"{options.DEFAULT_GONE} {default_preset}")
    assert not build()["preset_problems"].visible
    assert not build()["advanced"].open
    user_presets.delete(default_preset)
    components = build()
    assert components["preset_problems"].visible
    assert components["advanced"].open
    assert options.DEFAULT_GONE in components["preset_problems"].value
    assert default_preset in components["preset_problems"].value
    message = f"{options.DEFAULT_GONE} {default_preset}"
    assert message in caplog.messages
    caplog.clear()
    result = webui.job({"enabled": True}, n_iter=2)
    assert message in result.comments
    assert all(message in text for text in result.infotexts)
    assert message in caplog.messages
    assert message not in webui.job({"enabled": True, "preset": "Fast"}).comments


@pytest.fixture
def reads(file: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns a list to which every read of the file with the user's presets adds the name of the file."""
    found: list[str] = []
    read = user_presets.storage.read

    def noted(name: str) -> dict[str, Any]:
        found.extend([name] if name == user_presets.FILE else [])
        return read(name)

    monkeypatch.setattr(user_presets.storage, "read", noted)
    return found


def test_the_file_is_read_once_to_build_a_panel(reads: list[str]) -> None:
    build()
    assert reads == [user_presets.FILE]


def test_the_file_is_read_once_to_paste_an_infotext(webui: Webui, reads: list[str]) -> None:
    save("Mine", VALUES)
    reads.clear()
    script = next(script for script in scripts.scripts_txt2img.alwayson_scripts if script.name == "demofusion hires")
    params = {"DemoFusion": "1", "DemoFusion preset": "Mine (changed)", "DemoFusion upscaler": "Lanczos"}
    values = dict(zip(panel.CONTROLS, (read(params) for _, read in script.infotext_fields)))
    assert (values["preset"], values["upscaler"]) == ("Mine", "Lanczos")
    assert reads == [user_presets.FILE]


def test_an_axis_of_a_plot_reads_the_file_once_for_the_choices_and_once_to_check_the_values(reads: list[str]) -> None:
    save("Mine", VALUES)
    reads.clear()
    spec = SPECS["preset"]
    module = SimpleNamespace(AxisOption=lambda **values: SimpleNamespace(**values))
    axis = xyz._axis(module, "preset", spec)
    assert reads == []
    assert axis.choices() == [*PRESETS, "Mine"]
    axis.confirm(None, ["Paper", "Mine", "Fast"])
    assert reads == [user_presets.FILE] * 2


def test_panel_and_requests_use_fast_by_default(webui: Webui, file: Path) -> None:
    components = build()
    assert {name: components[name].value for name in PRESET_FIELDS} == preset_values("Fast")
    text = webui.job({"enabled": True, "scale": 2}, steps=11).infotexts[0]
    params = infotext_utils.parse_generation_parameters(text)
    assert params["DemoFusion preset"] == "Fast"
    assert {name: from_infotext(name, params) for name in PRESET_FIELDS} == preset_values("Fast")
    assert webui.job({"enabled": True, "scale": 2, "preset": "Fast"}, steps=11).infotexts[0] == text


def test_a_default_preset_saved_by_an_earlier_version_is_kept(
    webui: Webui, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The webui saves all settings. In earlier versions, the default value of "Default preset" was Balanced."""
    monkeypatch.setattr(shared.opts, options.DEFAULT_PRESET, "Balanced", raising=False)
    assert build()["preset"].value == "Balanced"
    text = webui.job({"enabled": True, "scale": 2}, steps=11).infotexts[0]
    assert infotext_utils.parse_generation_parameters(text)["DemoFusion preset"] == "Balanced"


def test_a_request_without_a_preset_uses_the_default_preset(webui: Webui, default_preset: str) -> None:
    text = webui.job({"enabled": True, "sigma": 0.8}).infotexts[0]
    params = infotext_utils.parse_generation_parameters(text)
    assert params["DemoFusion preset"] == f"{default_preset} (changed)"
    assert params["DemoFusion stages"] == "1,2"
    assert "DemoFusion sigma" not in params
    other = webui.job({"enabled": True, "preset": "Paper"}).infotexts[0]
    assert "DemoFusion stages" not in other
    assert "DemoFusion preset" not in other


def test_an_infotext_with_a_preset_that_was_deleted_reproduces_the_image(webui: Webui, default_preset: str) -> None:
    first = webui.job({"enabled": True, "denoising_strength": 0.5})
    user_presets.delete(default_preset)
    script = next(script for script in scripts.scripts_txt2img.alwayson_scripts if script.name == "demofusion hires")
    params = infotext_utils.parse_generation_parameters(first.infotexts[0])
    args = dict(zip(panel.CONTROLS, (read(params) for _, read in script.infotext_fields)))
    assert (args["preset"], args["sigma"], args["denoising_strength"]) == ("Paper", 1.5, 0.5)
    assert webui.job(args).images[0].tobytes() == first.images[0].tobytes()


def test_an_unknown_preset_is_reported(webui: Webui, file: Path, reported: Reports) -> None:
    reported.expect("preset: 'Yours' is not valid")
    save("Mine", VALUES)
    result = webui.job({"enabled": True, "preset": "Yours"})
    assert sizes(result) == [BASE]
    assert "preset: 'Yours' is not valid. Use one of Paper, Balanced, Fast, Turbo, Mine" in result.comments


def test_a_preset_on_an_axis_of_a_plot_sets_the_fields_of_the_preset(webui: Webui, default_preset: str) -> None:
    p = SimpleNamespace(_demofusion_xyz={"preset": default_preset, "sigma": "2"}, width=64, height=64)
    settings = settings_of_panel_job(p)
    assert (settings.preset, settings.stages, settings.sigma) == (default_preset, "1,2", 2.0)


def settings_of_panel_job(p: Any) -> Settings:
    """Returns the settings of a job from the page. The values of a plot in `p` replace the values of the panel."""
    from lib_demofusion.host import script

    seen: list[Settings] = []
    p.extra_generation_params = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "Job", lambda p, settings, infotext: seen.append(settings))
        script.create_job(p, [True, "Paper", "Latent", 0, 1.0, 2.0])
    return seen[0]


REFUSALS = (
    (lambda patch: patch.setattr(shared.opts, "tiling", True), {}, "Tiling"),
    (
        lambda patch: patch.setattr(shared.sd_model, "is_sd3", True),
        {},
        "this kind of model is not supported; choose another checkpoint",
    ),
    (lambda patch: None, {"override_settings": ["Clip skip: 2", "Tiling: True"]}, "Tiling"),
    (lambda patch: None, {"script": "SD upscale"}, "upscale or outpaint in tiles"),
    (lambda patch: None, {"script": "Poor man's outpainting"}, "upscale or outpaint in tiles"),
)
"""For each case: a function that changes the webui, values of the tab, and a part of the reason for the refusal."""


@pytest.mark.parametrize(("change", "tab", "text"), REFUSALS)
def test_the_summary_line_shows_why_a_job_would_be_refused(
    webui: Webui,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Any], None],
    tab: dict,
    text: str,
    reported: Reports,
) -> None:
    """A job runs only in the cases without values of the tab."""
    reported.expect(*["DemoFusion does not work with"] * (not tab))
    on = [{"enabled": True}]
    assert text not in describe(on, TabValues())
    with monkeypatch.context() as patch:
        change(patch)
        assert text in describe(on, TabValues(**tab))
        if not tab:
            comments = webui.job({"enabled": True}, **({"tiling": True} if text == "Tiling" else {})).comments
            assert text in comments


@pytest.mark.parametrize(("width", "warned"), [(2048, False), (2056, True)])
def test_the_summary_line_warns_of_huge_images(webui: Webui, width: int, warned: bool) -> None:
    text = describe([{"enabled": True, "scale": 8}], TabValues(width=width, height=512))
    assert ("16384 pixels" in text) == warned


def test_the_selected_script_is_found_by_its_position_in_the_dropdown() -> None:
    upscale = SimpleNamespace(title=lambda: "SD upscale")
    runner = SimpleNamespace(selectable_scripts=[upscale])
    titles = [refusals.chosen_script(runner, index) for index in (None, 0, 1, 2, "1", -1)]
    assert titles == ["", "", "SD upscale", "", "", ""]
    assert refusals.chosen_script(None, 1) == ""


def test_the_javascript_that_asks_for_confirmation_contains_the_names_of_the_built_in_presets(webui: Webui) -> None:
    scripts_of_page = [dependency["js"] or "" for dependency in webui.page.dependencies]
    confirms = [script for script in scripts_of_page if script.startswith("(...chosen)")]
    assert len(confirms) == 2
    assert all(json.dumps(list(PRESETS)) in script and preset_row.CONFIRM in script for script in confirms)
