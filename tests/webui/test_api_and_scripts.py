"""Tests the extension's API, and DemoFusion together with the webui's own scripts, in a real webui."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from webui.conftest import ROOT, TITLE, Result, Webui, png
from webui.test_generate import ON, assert_good, difference

from lib_demofusion.settings.fields import NAMES, SPECS, Settings
from lib_demofusion.settings.presets import BUILT_IN
from lib_demofusion.settings.reading import preset_values

pytestmark = pytest.mark.webui

SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 2}
TWICE = {**ON, "scale": 2}
"""Fields that enlarge the image of SMALL to 128x128 pixels."""
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


@contextmanager
def options(webui: Webui, **values: Any) -> Iterator[None]:
    """Changes settings of the webui, and restores them at the end of the context."""
    before = webui.call("options")
    webui.call("options", values)
    try:
        yield
    finally:
        webui.call("options", {name: before[name] for name in values})


@pytest.fixture(scope="module")
def upload() -> Image.Image:
    return Image.radial_gradient("L").resize((64, 64)).convert("RGB")


@pytest.fixture(params=["txt2img", "img2img"])
def tab(request: pytest.FixtureRequest, upload: Image.Image) -> dict[str, Any]:
    """Returns a small request. Each test runs once with a txt2img request and once with an img2img request."""
    own = {"init_images": [png(upload)]} if request.param == "img2img" else {}
    return {"path": request.param, **SMALL, **own}


class TestApi:
    def test_the_fields_of_the_panel_are_listed_with_their_defaults_and_ranges(self, webui: Webui) -> None:
        listed = [entry for entry in webui.call("script-info") if entry["name"] == TITLE.lower()]
        assert sorted(entry["is_img2img"] for entry in listed) == [False, True]
        for entry in listed:
            assert entry["is_alwayson"]
            # the last field, view_batch, is not on the panel
            assert [field["label"] for field in entry["args"]] == [spec.label for spec in list(SPECS.values())[:-1]]
            # the webui built the panel with the preset that was the default at its start
            (preset,) = (field["value"] for field in entry["args"] if field["label"] == SPECS["preset"].label)
            opening = {**asdict(Settings()), **preset_values(preset), "preset": preset}
            for field, (name, spec) in zip(entry["args"], SPECS.items()):
                # a control that offers two words for False and True has the word as its value
                boolean = spec.kind is bool and spec.words
                assert field["value"] == (spec.words[opening[name]] if boolean else opening[name])
                if spec.kind in (int, float) and name not in ("scale", "width", "height"):
                    assert (field["minimum"], field["maximum"]) == (spec.minimum, spec.maximum)
                    assert field["step"] == spec.step
                # the panel also offers the webui's upscalers and the user's presets, which are not compared
                for choice in (*spec.words, *spec.choices(BUILT_IN)):
                    assert any(choice in str(offered) for offered in field["choices"])

    def test_a_dict_equals_positional_values(self, webui: Webui, tab: dict[str, Any]) -> None:
        fields = {
            "enabled": True,
            "scale": 1.5,
            "stages": "1,1.5",
            "tile_size": 8,
            "jitter": False,
            "return_stages": True,
        }
        positional = [fields.get(name, getattr(Settings, name)) for name in NAMES]
        first, second = (webui.generate(args, **tab) for args in (fields, positional))
        assert_good(first, (96, 96), (64, 64))
        assert first.digests == second.digests
        assert first.infotexts == second.infotexts

    def test_a_missing_field_has_its_default(self, webui: Webui, tab: dict[str, Any]) -> None:
        assert_good(webui.generate({"enabled": True}, **tab), (128, 128))
        assert_good(webui.generate([True], **tab), (128, 128))
        plain = webui.generate(**tab)
        for nothing in ({}, [], [None], {"enabled": None}, {"scale": 4}):
            assert webui.generate(nothing, **tab).digests == plain.digests

    @pytest.mark.parametrize("preset", ["Balanced", "Fast"])
    def test_a_preset_equals_its_values(self, webui: Webui, tab: dict[str, Any], preset: str) -> None:
        """Three requests give the same image.

        The first names the preset. The second uses the default preset of the settings page. The third contains every
        value of the preset.
        """
        fields = {"enabled": True, "scale": 3}
        named = webui.generate({**fields, "preset": preset}, **tab)
        assert_good(named, (192, 192))
        assert f"DemoFusion preset: {preset}" in named.infotexts[0]
        # at a CFG scale of 2 or less, Turbo would replace the default preset without the second setting, because the
        # request has few steps
        settings = {"demofusion_default_preset": preset, "demofusion_few_steps": False}
        by_default = webui.generate(fields, override_settings=settings, **tab)
        assert (by_default.digests, by_default.infotexts) == (named.digests, named.infotexts)
        by_values = webui.generate({**fields, **preset_values(preset)}, **tab)
        assert by_values.digests == named.digests

    def test_a_request_with_few_steps_uses_turbo(self, webui: Webui, tab: dict[str, Any]) -> None:
        fields = {"enabled": True, "scale": 2}
        request = {**tab, "cfg_scale": 2}
        turbo = webui.generate(fields, override_settings={"demofusion_default_preset": "Fast"}, **request)
        named = webui.generate({**fields, "preset": "Turbo"}, **request)
        assert "DemoFusion preset: Turbo" in turbo.infotexts[0]
        assert "the preset Turbo is used instead of Fast" in turbo.infotexts[0]
        assert turbo.digests == named.digests

    def test_the_webuis_upscalers_enlarge_the_image(self, webui: Webui, tab: dict[str, Any]) -> None:
        fields = {"enabled": True, "upscaler": "Lanczos (pixels)", "denoising_strength": 0.5}
        results = [webui.generate({**fields, "upscaler": name}, **tab) for name in ("Lanczos", "Nearest")]
        assert results[0].digests != results[1].digests
        assert "DemoFusion upscaler: Nearest" in results[1].infotexts[0]
        wrong = webui.generate({**fields, "upscaler": "4x-Gone"}, **tab)
        assert wrong.digests == webui.generate(**tab).digests
        assert "upscaler: '4x-Gone' is not valid. Use one of" in wrong.infotexts[0]

    @pytest.mark.parametrize(
        ("args", "named"),
        [
            ({"enabled": True, "scale": [2]}, "scale"),
            ({"enabled": True, "scale": "1e400"}, "scale"),
            ({"enabled": True, "stages": {"1": 2}}, "stages"),
            ({"enabled": True, "height": 9.5}, "height"),
            ({"enabled": True, "Scale": 2}, "the field 'Scale'"),
            ({"enabled": "maybe"}, "enabled"),
            (["maybe"], "enabled"),
            ([True, True], "preset"),
            ([True, "Paper", "Latent", 0, 2], "denoising_strength"),
        ],
    )
    def test_a_wrong_value_is_named_and_the_plain_image_is_returned(
        self, webui: Webui, tab: dict[str, Any], args: Any, named: str
    ) -> None:
        result = webui.generate(args, **tab)
        assert result.digests == webui.generate(**tab).digests
        message = re.search(r'DemoFusion error: "?([^"]*)', result.infotexts[0])
        assert message
        assert re.match(rf"{named}(: .+ is not valid| does not exist .+)\. Use .+", message[1])

    def test_stage_images_have_their_own_infotext(self, webui: Webui, tab: dict[str, Any]) -> None:
        shown = {**ON, "stages": "1,1.5,2", "return_stages": True}
        result = webui.generate(shown, **tab, batch_size=2, do_not_save_grid=True)
        assert_good(result, *[(128, 128)] * 2, *[(64, 64)] * 2, *[(96, 96)] * 2)
        for i, (text, picture) in enumerate(zip(result.infotexts, result.images)):
            assert f"Seed: {1 + i % 2}," in text
            assert f"DemoFusion size: {picture.width} x {picture.height}" in text
            assert picture.info["parameters"] == text
            stage = ("", "DemoFusion stage: base image", "DemoFusion stage: 1 of 2")[i // 2]
            assert stage in text
            assert ("DemoFusion stage:" in text) == (i >= 2)

    def test_simultaneous_requests_give_the_same_images_as_separate_ones(
        self, webui: Webui, tab: dict[str, Any]
    ) -> None:
        # the webui's VAE encoder draws from a generator that the previous job has seeded, and the webui can run
        # simultaneous requests in any order. All img2img requests therefore have the same seed
        seeds = [5, 6, 7] if tab["path"] == "txt2img" else [5, 5, 5]
        webui.generate(**tab, seed=seeds[0])
        fields = [{**TWICE, "return_stages": True}, {**ON, "scale": 1.5}, None]
        requests = [(one, {"seed": seed}) for one, seed in zip(fields, seeds)]
        alone = [webui.generate(one, **tab, **more) for one, more in requests]
        together: dict[int, Result] = {}

        def ask(i: int) -> None:
            one, more = requests[i]
            together[i] = webui.generate(one, **tab, **more)

        threads = [threading.Thread(target=ask, args=[i]) for i in range(len(requests))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        for i, expected in enumerate(alone):
            assert together[i].digests == expected.digests
            assert together[i].infotexts == expected.infotexts


class TestApiDocs:
    def test_the_example_request(self, webui: Webui) -> None:
        """Sends the example of docs/api.md with a smaller size and fewer steps, so that a CPU is fast enough."""
        (block,) = re.findall(r"```json\n(.*?)```", API, re.S)
        body = json.loads(block)
        small = {**body, "width": body["width"] // 8, "height": body["height"] // 8}
        result = webui.generate(**{**small, "steps": 2})
        assert_good(result, (320, 240), (128, 96), (256, 192))

    def test_the_example_program(self, webui: Webui, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("requests")
        (program,) = re.findall(r"```python\n(.*?)```", API, re.S)
        assert "http://127.0.0.1:7860" in program
        monkeypatch.chdir(tmp_path)
        Image.radial_gradient("L").resize((72, 64)).convert("RGB").save("picture.png")
        exec(compile(program.replace("http://127.0.0.1:7860", webui.url), "docs/api.md", "exec"), {})
        with Image.open("picture-2x.png") as made:
            assert made.size == (144, 128)
            assert "DemoFusion size: 144 x 128" in made.info["parameters"]


def fresh(webui: Webui, demofusion: Any = None, **request: Any) -> Result:
    """Sends a fixed request first, and then generates an image.

    The webui's VAE encoder draws from a generator whose state depends on the previous job. With the fixed request, the
    previous job is always the same.
    """
    webui.generate(**{**SMALL, "steps": 1})
    return webui.generate(demofusion, **request)


def with_script(webui: Webui, name: str, img2img: bool = False, **values: Any) -> dict[str, Any]:
    """Returns the fields of a request that select the script `name` in the dropdown *Script*.

    `values` maps the labels of the script's controls to values. The other controls keep their defaults.
    """
    entries = webui.call("script-info")
    entry = next(e for e in entries if e["name"] == name.lower() and e["is_img2img"] == img2img)
    unknown = values.keys() - {control["label"] for control in entry["args"]}
    assert not unknown
    args = [values.get(control["label"], control["value"]) for control in entry["args"]]
    return {"script_name": name, "script_args": args}


def mean_difference(result: Result, base: Result) -> float:
    """Returns the mean difference in color levels (0 to 255) between the base image and the reduced result."""
    reduced = result.images[0].resize(base.images[0].size, Image.Resampling.BOX)
    return float(np.abs(np.asarray(reduced, float) - np.asarray(base.images[0], float)).mean())


class TestScripts:
    """Tests DemoFusion with each of the webui's own scripts.

    With most scripts, the images are the same as with single requests without a script. With scripts that upscale or
    outpaint, no stage runs.
    """

    @pytest.fixture(autouse=True)
    def plain_images_are_unchanged(self, webui: Webui, upload: Image.Image) -> Iterator[None]:
        """Tests that images without DemoFusion are the same before and after each test."""
        plain = fresh(webui, **SMALL)
        of_upload = {"path": "img2img", "init_images": [png(upload)], **SMALL}
        redrawn = fresh(webui, **of_upload)
        yield
        assert fresh(webui, **SMALL).digests == plain.digests
        assert fresh(webui, **of_upload).digests == redrawn.digests

    @pytest.mark.parametrize("return_stages", [False, True])
    def test_prompt_matrix(self, webui: Webui, return_stages: bool) -> None:
        request = {**SMALL, "prompt": "a circle|red|large"}
        matrix = with_script(webui, "Prompt matrix")
        result = fresh(webui, {**TWICE, "return_stages": return_stages}, **request, **matrix)
        small = fresh(webui, **request, **matrix)
        assert small.sizes[1:] == [(64, 64)] * 4
        assert result.sizes[1:] == [(128, 128)] * 4
        # the first image is the grid, whose last cell is at the lower right
        right, bottom = result.sizes[0]
        corner = result.images[0].crop((right - 128, bottom - 128, right, bottom))
        last = fresh(webui, TWICE, **{**SMALL, "prompt": "a circle, red, large"})
        assert difference(corner, last.images[0]) == difference(result.images[-1], last.images[0]) == 0

    def test_prompts_from_file(self, webui: Webui) -> None:
        values = {"List of prompt inputs": "a red circle\na blue square"}
        result = fresh(webui, TWICE, **SMALL, **with_script(webui, "Prompts from file or textbox", **values))
        # by default, the script inserts each line before the prompt of the request, which is "a red circle"
        alone = [
            fresh(webui, TWICE, **{**SMALL, "prompt": text})
            for text in ("a red circle a red circle", "a blue square a red circle")
        ]
        assert result.digests == [one.digests[0] for one in alone]

    def test_a_plot_shows_final_images_only(self, webui: Webui) -> None:
        plot = with_script(webui, "X/Y/Z plot", **{"Include Sub Images": True})
        axes = next(e for e in webui.call("script-info") if e["name"] == "x/y/z plot")["args"][0]["choices"]
        plot["script_args"][:9] = [axes.index("Steps"), "2,3", "", 0, "", "", 0, "", ""]
        result = fresh(webui, {**TWICE, "return_stages": True}, **SMALL, **plot)
        alone = [fresh(webui, TWICE, **{**SMALL, "steps": steps}).digests[0] for steps in (2, 3)]
        assert result.digests[-2:] == alone

    def test_loopback(self, webui: Webui, upload: Image.Image) -> None:
        """Every loop begins with the final image of the previous loop, reduced to the size of the request."""
        request = {"path": "img2img", "init_images": [png(upload)], **SMALL, "denoising_strength": 0.5}
        loop = with_script(webui, "Loopback", True, Loops=2)
        result = fresh(webui, TWICE, **request, **loop)
        assert result.sizes[-2:] == [(128, 128)] * 2
        first = fresh(webui, TWICE, **request)
        assert result.digests[-2] == first.digests[0]
        again = {**request, "init_images": [png(first.images[0])], "seed": 2}
        assert difference(result.images[-1], fresh(webui, TWICE, **again).images[0]) == 0

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("SD upscale", {"Tile overlap": 16}),
            ("Poor man's outpainting", {"Pixels to expand": 16, "Outpainting direction": ["left"]}),
            ("Outpainting mk2", {"Pixels to expand": 16, "Mask blur": 2, "Outpainting direction": ["left"]}),
        ],
    )
    def test_no_stage_runs_with_scripts_that_upscale_or_outpaint_in_tiles(
        self, webui: Webui, upload: Image.Image, name: str, values: dict[str, Any]
    ) -> None:
        request = {"path": "img2img", "init_images": [png(upload)], **SMALL}
        script = with_script(webui, name, True, **values)
        result = fresh(webui, TWICE, **request, **script)
        assert result.digests == fresh(webui, **request, **script).digests
        assert "scripts that upscale or outpaint in tiles" in result.infotexts[0]

    def test_img2img_alternative(self, webui: Webui, upload: Image.Image) -> None:
        """The script makes an image with its own sampler, and this image is the base image of the stages.

        The script samples from the upload's latent. Without `img2img_first`, DemoFusion encodes the upload with the
        seed of the request, so the script's image would be another one.
        """
        request = {"path": "img2img", "init_images": [png(upload)], **SMALL}
        script = with_script(webui, "img2img alternative test", True, **{"Decode steps": 2})
        fields = {**TWICE, "img2img_first": True, "denoising_strength": 0.3}
        alone = fresh(webui, **request, **script)
        # at 1x, no stage runs
        assert fresh(webui, {**fields, "scale": 1}, **request, **script).digests == alone.digests
        made, without_script = (fresh(webui, fields, **request, **more) for more in (script, {}))
        assert made.sizes == without_script.sizes == [(128, 128)]
        # with the tiny checkpoint, the mean differences are 31 and 39 color levels
        assert mean_difference(made, alone) < 0.9 * mean_difference(without_script, alone)
