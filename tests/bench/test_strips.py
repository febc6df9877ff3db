"""Compares the strips in pictures/effects with their program, the presets, and the pages that show them."""

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
        # through JSON, which has lists but no tuples
        assert json.loads(strip.info["comment"]) == json.loads(effect.comment())


def test_there_is_no_other_strip() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == {effect.name for effect in EFFECTS}


def test_the_documentation_shows_every_strip_with_its_caption() -> None:
    page = (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
    shown = re.findall(r"\*\*(.*)\*\*\n\n!\[(.*)\]\(\.\./pictures/effects/(\w+)\.jpg\)", page)
    assert shown == [(effect.caption, effect.caption, effect.name) for effect in EFFECTS[1:]]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(
        r"^!\[One image at 4x with each preset\b.*\]\(pictures/effects/preset\.jpg\)$", readme, re.MULTILINE
    )


def test_every_preset_is_on_its_strip() -> None:
    assert [title for title, _ in EFFECTS[0].labels()] == list(PRESETS)


class Recorder:
    """Replaces a benchmark and its store. It makes no images, and puts its own name into their paths."""

    def __init__(self, name: str):
        self.name, self.store = name, self

    def run(self, jobs: list[Job], numbers: list[int]) -> None:
        pass

    def path(self, job: Job, number: int) -> Path:
        return Path(self.name, job.configuration.name, str(number))


def test_only_turbo_is_drawn_by_the_model_for_few_steps() -> None:
    files = strips.images_of(EFFECTS[0], 1, Recorder("usual"), Recorder("few"))
    folders = {preset: "few" if preset == TURBO else "usual" for preset in PRESETS}
    assert files == [Path(folder, f"preset {preset}", "1") for preset, folder in folders.items()]


def test_a_caption_has_every_value_that_differs_from_the_preset() -> None:
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
def test_the_parts_of_the_first_picture_are_larger_than_the_whole_images(side: int) -> None:
    part = middle(Image.new("RGB", (side, side)), strips.PART)
    assert strips.WHOLE < part.width == part.height < side


def test_a_sheet_has_every_whole_image_and_below_it_a_larger_part(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.new("RGB", (512, 512), "red").save(file)
    assert [way.name for way in strips.compared()] == list(strips.COMPARED)
    page = contact_sheet([("a", "", [file] * 2)] * 3, ["one", "two"], 120, 220)
    red = sum(count for count, colour in page.getcolors(page.width * page.height) if colour == (255, 0, 0))
    assert red == 6 * (120**2 + 220**2)
