"""Compares the strips in pictures/effects with bench.quality.strips, with the presets and with the documentation.

A strip is a row of images that shows the effect of one parameter. The JPEG comment of a strip contains the settings
with which it was made.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from bench.quality import strips
from bench.quality.runs import Job
from bench.quality.strips import EFFECTS, Effect
from lib_demofusion.settings.presets import PRESETS, TURBO
from trial.sheet import contact_sheet, middle

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "pictures" / "effects"


@pytest.mark.parametrize("effect", EFFECTS, ids=lambda effect: effect.name)
def test_a_strip_was_made_with_the_current_values(effect: Effect) -> None:
    """If this fails after a change of a preset, make the strip again: python -m bench.quality.strips --only NAME."""
    with Image.open(FOLDER / f"{effect.name}.jpg") as strip:
        # both comments are parsed, so their contents are compared, and not the format of the JSON
        assert json.loads(strip.info["comment"]) == json.loads(effect.comment())


def test_the_folder_contains_no_other_file_than_the_strips() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == {effect.name for effect in EFFECTS}


def test_the_documentation_shows_every_strip_with_its_caption() -> None:
    page = (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
    shown = re.findall(r"\*\*(.*)\*\*\n\n!\[(.*)\]\(\.\./pictures/effects/(\w+)\.jpg\)", page)
    assert shown == [(effect.caption, effect.caption, effect.name) for effect in EFFECTS[1:]]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(
        r"^!\[One image at 4x with each preset\b.*\]\(pictures/effects/preset\.jpg\)$", readme, re.MULTILINE
    )


def test_the_strip_of_the_presets_shows_every_preset() -> None:
    assert [title for title, _ in EFFECTS[0].labels()] == list(PRESETS)


class Recorder:
    """Imitates a benchmark and its store, but makes no images.

    `name` is the first folder in the path of each image.
    """

    def __init__(self, name: str):
        self.name, self.store = name, self

    def run(self, jobs: list[Job], numbers: list[int]) -> None:
        pass

    def path(self, job: Job, number: int) -> Path:
        return Path(self.name, job.configuration.name, str(number))


def test_only_images_with_turbo_use_the_few_step_model() -> None:
    files = strips.images_of(EFFECTS[0], 1, Recorder("usual"), Recorder("few"))
    folders = {preset: "few" if preset == TURBO else "usual" for preset in PRESETS}
    assert files == [Path(folder, f"preset {preset}", "1") for preset, folder in folders.items()]


def test_a_caption_contains_every_change_to_the_preset() -> None:
    effect = Effect("jitter", (False, True), "Paper", {"stages": "fewest", "overlap": 0.25})
    assert effect.caption == "Jitter, in Paper with stages fewest and tile overlap 0.25"
    assert Effect("sigma", (1,)).caption == "Blur sigma, in Balanced"


def test_readmes_first_picture_was_made_with_the_current_values() -> None:
    """If this fails, make the picture again: python -m bench.quality.strips --only comparison."""
    with Image.open(ROOT / "pictures" / "comparison.jpg") as picture:
        assert json.loads(picture.info["comment"]) == json.loads(strips.comment())
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    scales = " and ".join(f"{scale}x" for scale in sorted({scale for _, scale in strips.SHOWN}, reverse=True))
    assert f"![Three prompts at {scales}:" in page
    assert len(strips.SHOWN) == 3


@pytest.mark.parametrize("side", [256, 384, 512])
def test_readmes_first_picture_shows_the_parts_larger_than_the_whole_images(side: int) -> None:
    """PART and WHOLE are the sides in pixels of a part and of a whole image in the picture."""
    part = middle(Image.new("RGB", (side, side)), strips.PART)
    assert strips.WHOLE < part.width == part.height < side


def test_a_sheet_shows_every_whole_image_and_a_1_to_1_part_of_it(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.new("RGB", (512, 512), "red").save(file)
    assert [way.name for way in strips.compared()] == list(strips.COMPARED)
    # three columns with two images each
    page = contact_sheet([("a", "", [file] * 2)] * 3, ["one", "two"], 120, 220)
    red = sum(count for count, colour in page.getcolors(page.width * page.height) if colour == (255, 0, 0))
    assert red == 6 * (120**2 + 220**2)
