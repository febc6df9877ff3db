"""Tests the files that a job saves, and whether an infotext reproduces its image."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image
from webui.conftest import REQUEST, Result, Webui, png
from webui.test_api_and_scripts import SMALL, TWICE, fresh, options
from webui.test_generate import ON, assert_good, difference

pytestmark = pytest.mark.webui

FOLDERS = ("outdir_txt2img_samples", "outdir_img2img_samples", "outdir_txt2img_grids", "outdir_img2img_grids")
Save = Callable[..., Result]


@pytest.fixture
def save(webui: Webui, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Save]:
    """Returns a function that generates images, which the webui saves in `tmp_path`.

    The parameter of the fixture contains further settings of the webui.
    """
    own = {"samples_save": True, "save_to_dirs": False, "grid_save_to_dirs": False, "grid_save": False}
    own |= {name: str(tmp_path) for name in FOLDERS} | getattr(request, "param", {})
    with options(webui, **own):
        yield lambda *args, **more: webui.generate(*args, **{**SMALL, "save_images": True, **more})


def sizes(folder: Path) -> dict[str, tuple[int, int]]:
    """Returns the sizes of the images in a folder, by file name."""
    found = {}
    for path in sorted(folder.iterdir()):
        with Image.open(path) as picture:
            found[path.name] = picture.size
    return found


def text_of(webui: Webui, path: Path) -> str:
    """Returns the infotext that the webui reads from a file."""
    return webui.call("png-info", {"image": base64.b64encode(path.read_bytes()).decode()})["info"]


@pytest.mark.parametrize("save", [{"samples_filename_pattern": "[seed]-[width]x[height]"}], indirect=True)
def test_the_file_names_of_stages_follow_the_pattern(webui: Webui, save: Save, tmp_path: Path) -> None:
    result = save({**ON, "stages": "1,1.5,2", "save_stages": True})
    assert sizes(tmp_path) == {
        "00000-1-64x64-demofusion-64x64.png": (64, 64),
        "00001-1-96x96-demofusion-96x96.png": (96, 96),
        "00002-1-128x128.png": (128, 128),
    }
    text = text_of(webui, tmp_path / "00002-1-128x128.png")
    assert text == result.infotexts[0]
    assert "DemoFusion size: 96 x 96" in text_of(webui, tmp_path / "00001-1-96x96-demofusion-96x96.png")


@pytest.mark.parametrize("save", [{"grid_save": True, "return_grid": True}], indirect=True)
def test_a_grid_contains_only_final_images(webui: Webui, save: Save, tmp_path: Path) -> None:
    result = save({**TWICE, "return_stages": True}, batch_size=2)
    assert result.sizes == [(256, 128), (128, 128), (128, 128), (64, 64), (64, 64)]
    assert sizes(tmp_path)["grid-0000.png"] == (256, 128)
    left, right = (result.images[0].crop((x, 0, x + 128, 128)) for x in (0, 128))
    assert difference(left, result.images[1]) == difference(right, result.images[2]) == 0


@pytest.mark.parametrize("save", [{"samples_format": "jpg"}, {"samples_format": "webp"}], indirect=True)
def test_jpeg_and_webp_files_contain_the_infotext(webui: Webui, save: Save, tmp_path: Path) -> None:
    result = save({**TWICE, "save_stages": True, "return_stages": True})
    files = sizes(tmp_path)
    assert list(files.values()) == [(64, 64), (128, 128)]
    assert {Path(name).suffix for name in files} in ({".jpg"}, {".webp"})
    assert text_of(webui, tmp_path / list(files)[-1]) == result.infotexts[0]


@pytest.mark.parametrize("save", [{"export_for_4chan": True, "target_side_length": 100.0}], indirect=True)
def test_the_webui_also_saves_a_smaller_copy_of_the_final_image(webui: Webui, save: Save, tmp_path: Path) -> None:
    save(TWICE)
    assert sorted((Path(name).suffix, size) for name, size in sizes(tmp_path).items()) == [
        (".jpg", (100, 100)),
        (".png", (128, 128)),
    ]


def test_a_final_size_that_is_too_large_for_webp_is_refused_before_the_stages(webui: Webui) -> None:
    long = {"width": 2048, "height": 64, "steps": 1}
    with options(webui, samples_format="webp"):
        result = webui.generate({"enabled": True, "width": 16384, "height": 512}, **long)
    assert result.sizes == [(2048, 64)]
    assert "width: 16384 is not valid. Use at most 16383" in result.infotexts[0]


@pytest.mark.parametrize(
    "save", [{"samples_format": "webp", "grid_format": "webp", "return_grid": True, "n_rows": 1}], indirect=True
)
def test_no_image_is_lost_if_a_grid_is_too_large_for_webp(webui: Webui, save: Save, tmp_path: Path) -> None:
    wide = {"width": 2048, "height": 64, "steps": 1, "batch_size": 4}
    result = save({"enabled": True, "scale": 2}, **wide)
    # no grid: with four images side by side, it would be 16384 pixels wide, and WebP allows 16383
    assert result.sizes == [(4096, 128)] * 4
    # the webui adds a smaller JPEG to each image with a side of more than 4000 pixels
    assert [size for name, size in sizes(tmp_path).items() if name.endswith(".webp")] == [(4096, 128)] * 4
    # without DemoFusion, the grid has half the width, which WebP allows, so the webui makes the grid
    assert save(None, **wide).sizes[0] == (8192, 64)


@pytest.mark.parametrize("save", [{"save_incomplete_images": x} for x in (False, True)], indirect=True)
def test_an_interrupted_image_is_saved_only_with_save_incomplete_images(
    webui: Webui, save: Save, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    kept = webui.call("options")["save_incomplete_images"]
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(save({**ON, "scale": 3, "view_batch": 1}, steps=10)))
    thread.start()
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        progress = webui.call("progress?skip_current_image=true")
        if (progress["textinfo"] or "").startswith("DemoFusion 2/2"):
            break
        time.sleep(0.05)
    webui.call("interrupt", {})
    thread.join(60)
    assert results[0].sizes == [(128, 128)]
    assert "DemoFusion stopped" in results[0].infotexts[0]
    assert list(sizes(tmp_path).values()) == ([(128, 128)] if kept else [])


def again(webui: Webui, path: str, text: str, **request: Any) -> Image.Image:
    """Generates an image from an infotext. `request` contains values that the API does not read from the infotext."""
    answer = webui.call(path, {"infotext": text, **request})
    return Image.open(io.BytesIO(base64.b64decode(answer["images"][0])))


class TestTheInfotextReproducesTheImage:
    FIELDS: ClassVar = {
        "enabled": True,
        "scale": 1.5,
        "tile_size": 8,
        "jitter": False,
        "sigma": 1.25,
        "denoising_strength": 0.5,
    }

    def test_hires_fix(self, webui: Webui) -> None:
        request = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.5}
        first = webui.generate(self.FIELDS, **SMALL, **request)
        assert_good(first, (144, 144))
        # the webui's own infotext contains "Use same sampler", but the webui's API does not accept this name
        same = {"hr_sampler_name": None, "hr_scheduler": None, "hr_checkpoint_name": None}
        assert difference(again(webui, "txt2img", first.infotexts[0], **same), first.images[0]) == 0

    @pytest.mark.parametrize("masked", [False, True])
    def test_img2img(self, webui: Webui, masked: bool) -> None:
        upload = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
        # the webui's img2img API reads only the scripts' fields from an infotext
        own: dict[str, Any] = {**REQUEST, **SMALL, "denoising_strength": 0.6, "init_images": [png(upload)]}
        fields = self.FIELDS
        if masked:
            mask = Image.new("L", upload.size, 0)
            mask.paste(255, (16, 16, 48, 48))
            own |= {"mask": png(mask), "mask_blur": 2}
        else:
            fields = {**fields, "img2img_first": True}
        first = fresh(webui, fields, path="img2img", **own)
        assert_good(first, (96, 96))
        webui.generate(**{**SMALL, "steps": 1})
        assert difference(again(webui, "img2img", first.infotexts[0], **own), first.images[0]) == 0


def test_images_and_infotexts_have_the_same_order_if_the_webui_returns_masks(webui: Webui) -> None:
    upload = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
    request = {"path": "img2img", "init_images": [png(upload)], "mask": png(Image.new("L", upload.size, 255))}
    with options(webui, return_mask=True):
        result = webui.generate({**TWICE, "return_stages": True}, **SMALL, **request)
    assert result.sizes == [(128, 128), (128, 128), (64, 64)]
    assert "DemoFusion stage: base image" in result.infotexts[2]
