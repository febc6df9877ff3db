"""Compares the fields, presets and numbers in README and docs/ with the code and the measurements."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from lib_demofusion.method.costs import run_costs
from lib_demofusion.method.plan import make_plan
from lib_demofusion.settings.fields import NAMES, PRESET_FIELDS, SPECS, Settings
from lib_demofusion.settings.presets import BUILT_IN, DEFAULT_PRESET, LANCZOS, PRESETS
from lib_demofusion.settings.reading import parse_settings, preset_values

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    page: (ROOT / page).read_text(encoding="utf-8")
    for page in (
        *("README.md", "CONTRIBUTING.md"),
        *("docs/parameters.md", "docs/api.md", "docs/compatibility.md", "docs/cards.md"),
    )
}


def rows(heading: str, page: str = "docs/parameters.md") -> list[list[str]]:
    """Returns the cells of all tables whose first line begins with `heading`."""
    tables = [block.splitlines() for block in PAGES[page].split("\n\n") if block.startswith(heading)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for table in tables for line in table[2:]]


def written(value: Any) -> str:
    """Formats a value as in README."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, (int, float)) else value or "empty"


FIELDS = {name: row for row in rows("| Name | API field") for name in re.findall(r"`(\w+)`", row[1])}
DEFAULTS = {**{name: getattr(Settings, name) for name in NAMES}, **preset_values(DEFAULT_PRESET)}
DEFAULTS["preset"] = DEFAULT_PRESET


def test_the_table_has_every_field() -> None:
    assert set(FIELDS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_label_default_and_range_of_a_field(name: str) -> None:
    labels, _, default, range_, _ = FIELDS[name]
    spec = SPECS[name]
    assert spec.label.partition(" (")[0] in labels.split(", ")
    assert default == written(DEFAULTS[name])
    if spec.kind in (int, float):
        assert f"{spec.maximum:g}" in range_
        assert range_.startswith(f"{spec.minimum:g}")
    # a webui in this process adds its own upscalers
    for choice in ("Latent", LANCZOS) if name == "upscaler" else (*spec.choices(BUILT_IN), *spec.words):
        assert choice in range_


def test_the_presets_are_told_with_their_values() -> None:
    told = {row[0]: row[1:] for row in rows("| Parameter | ")}
    labels = {SPECS[name].label.partition(" (")[0]: name for name in PRESET_FIELDS}
    different = {
        name for name in PRESET_FIELDS if len({written(preset_values(preset)[name]) for preset in PRESETS}) > 1
    }
    assert {labels[label] for label in told} == different
    for label, cells in told.items():
        assert cells == [written(preset_values(preset)[labels[label]]) for preset in PRESETS]


def test_what_the_presets_cost() -> None:
    told = {preset: cells for preset, _, *cells in rows("| Preset | For", "README.md")}
    assert set(told) == set(PRESETS)
    for preset, cells in told.items():
        for scale, cell in zip((2, 3, 4, 6, 8), cells):
            settings = parse_settings({"scale": scale, "preset": preset})
            costs = run_costs(make_plan(settings, (128, 128)), settings, steps=20, two_calls=False)
            total = 1 + sum(costs.stages) / costs.base
            assert cell == (f"{total:.1f}" if total < 10 else str(math.floor(total + 0.5)))


def bench_tables() -> dict[str, dict[str, dict[str, str]]]:
    """Returns the numbers of the tables of 64 collages in bench/README.md, by scale, configuration and column."""
    text = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    found = {}
    for scale, table in re.findall(r"#### (\dx), \d+ pixels, 64 prompts.*?\n\n(\|.*?)\n\n", text, re.DOTALL):
        head, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
        found[scale] = {line[0]: dict(zip(head, (cell.split(" ")[0] for cell in line))) for line in lines}
    return found


MEASURED = {
    "images with an extra subject": ("any extra", True, ""),
    "images with the right subject": ("right subject", True, ""),
    "foreign spots in an image": ("blobs", False, ""),
    "closeness to the base image": ("structure dB", False, " dB"),
    "distance to the spectrum of true renderings": ("spectrum", False, ""),
    "evaluations of the model in base passes": ("units", False, ""),
}
"""The rows of README's table of measurements: the column of bench/README.md, whether it is a share, and the unit."""


def measured(table: dict[str, dict[str, str]], way: str, row: str) -> str:
    """Formats a number of bench/README.md as in README."""
    column, share, unit = MEASURED[row]
    number = table[way][column]
    return f"{100 * float(number):.0f} %" if share else number + unit


def test_what_was_measured() -> None:
    tables = bench_tables()
    (head,) = re.findall(r"^\| Measured \|(.*)\|$", PAGES["README.md"], re.MULTILINE)
    ways = [way.strip() for way in head.split("|")]
    told = rows("| Measured", "README.md")
    assert {row.partition(", ")[0] for row, *_ in told} == set(MEASURED)
    for label, *cells in told:
        row, _, scale = label.partition(", ")
        assert cells == [measured(tables[scale], way, row) for way in ways], label


COMPARING = re.compile(
    r"\b(than|against|compared|fewer|better|worse|faster|slower|sharper|closer|as (?:much|many|often|frequent) as)\b"
)
WAYS = re.compile(r"\b(Paper|Balanced|Fast|Turbo|[Hh]ires fix|ESRGAN|Ultimate SD|PiD|SeedVR2|MultiDiffusion)\b")


def sentences(page: str) -> list[str]:
    """Returns the sentences of a page, without its tables, headings and code."""
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    text = "\n".join("" if line.startswith(("|", "#", "!", "<")) else line for line in text.splitlines())
    paragraphs = re.split(r"\n\s*\n|\n(?=\* |\d\. |\*\*)", text)
    return [part for one in paragraphs for part in re.split(r"(?<=[.!?])\s+", " ".join(one.split()))]


def test_every_sentence_that_compares_has_numbers_of_the_tables() -> None:
    """Every other number comes from README's own table or from the model without zoomed crops.

    The test above compares README's table.
    """
    history = (ROOT / "docs" / "history.md").read_text(encoding="utf-8")
    crops = re.search(r"## A model without zoomed crops.*?\n\n(\|.*?)\n\n", history, re.DOTALL)
    assert crops
    numbers = {cell.removesuffix(" dB") for row in rows("| Measured", "README.md") for cell in row[1:]}
    numbers |= {f"{100 * float(share):.0f} %" for share in re.findall(r"0\.\d\d", crops[1])}
    comparing = [one for one in sentences("README.md") if COMPARING.search(one) and WAYS.search(one)]
    assert len(comparing) >= 4
    for one in comparing:
        # scales, strengths and counts of prompts are conditions, not results
        results = re.findall(
            r"(?<![\w.])\d+(?:\.\d+)?(?: %)?(?![\w.]*\d|x| prompts)", re.sub(r"strength [\d.]+", "", one)
        )
        assert results, one
        assert set(results) <= numbers, one


def test_the_order_of_positional_values_is_told() -> None:
    (order,) = re.findall(r"`(enabled, preset,[^`]*)`", PAGES["docs/api.md"])
    assert tuple(re.split(r",\s+", order)) == NAMES


@pytest.mark.parametrize("page", PAGES)
def test_every_picture_and_page_that_is_named_is_there(page: str) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", PAGES[page]):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target


def test_the_entry_for_the_list_of_extensions() -> None:
    (file,) = (ROOT / ".github" / "extension-index").iterdir()
    entry = json.loads(file.read_text(encoding="utf-8"))
    assert set(entry) == {"name", "url", "description", "tags"}
    assert entry["url"].endswith(f"/{file.stem}.git")
    # the list's own tags for extensions that make images
    assert set(entry["tags"]) <= {"script", "manipulations"}
