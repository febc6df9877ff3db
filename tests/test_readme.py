"""Compares the fields, presets and numbers in README and docs/ with the code and with the measurements in bench/."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from bench.quality.sampler import timesteps
from lib_demofusion.method.costs import run_costs
from lib_demofusion.method.plan import make_plan
from lib_demofusion.method.schedule import weights_at
from lib_demofusion.settings.fields import NAMES, PRESET_FIELDS, SPECS, Settings
from lib_demofusion.settings.presets import BUILT_IN, DEFAULT_PRESET, PRESETS
from lib_demofusion.settings.reading import parse_settings, preset_values

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    page: (ROOT / page).read_text(encoding="utf-8")
    for page in (
        *("README.md", "CONTRIBUTING.md"),
        *("docs/parameters.md", "docs/api.md", "docs/compatibility.md", "docs/cards.md", "docs/messages.md"),
    )
}


def rows(heading: str, page: str = "docs/parameters.md") -> list[list[str]]:
    """Returns the rows, without the headings, of all tables of a page whose first line begins with `heading`.

    A row is a list of the texts in its cells.
    """
    tables = [block.splitlines() for block in PAGES[page].split("\n\n") if block.startswith(heading)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for table in tables for line in table[2:]]


def written(value: Any) -> str:
    """Formats the value of a field as in README and docs/parameters.md."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, (int, float)) else value or "empty"


FIELDS = {name: row for row in rows("| Name | API field") for name in re.findall(r"`(\w+)`", row[1])}
DEFAULTS = {**{name: getattr(Settings, name) for name in NAMES}, **preset_values(DEFAULT_PRESET)}
DEFAULTS["preset"] = DEFAULT_PRESET


def test_the_table_of_parameters_has_every_field() -> None:
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
    for choice in (*spec.choices(BUILT_IN), *spec.words):
        assert choice in range_


def test_the_table_of_presets_has_all_fields_whose_values_differ_between_presets() -> None:
    table = {row[0]: row[1:] for row in rows("| Parameter | ")}
    labels = {SPECS[name].label.partition(" (")[0]: name for name in PRESET_FIELDS}
    different = {
        name for name in PRESET_FIELDS if len({written(preset_values(preset)[name]) for preset in PRESETS}) > 1
    }
    assert {labels[label] for label in table} == different
    for label, cells in table.items():
        assert cells == [written(preset_values(preset)[labels[label]]) for preset in PRESETS]


def test_the_table_of_costs_equals_the_computed_costs() -> None:
    table = {preset: cells for preset, _, *cells in rows("| Preset | For", "README.md")}
    assert set(table) == set(PRESETS)
    for preset, cells in table.items():
        for scale, cell in zip((2, 3, 4, 6, 8), cells):
            settings = parse_settings({"scale": scale, "preset": preset})
            costs = run_costs(make_plan(settings, (128, 128)), settings, steps=20, two_calls=False)
            total = 1 + sum(costs.stages) / costs.base
            assert cell == (f"{total:.1f}" if total < 10 else str(math.floor(total + 0.5)))


def test_values_of_presets_in_sentences_are_correct() -> None:
    """Compares texts in README such as "*Feather* (0.125 in *Turbo*)" with the presets, and maxima with the ranges."""
    text = " ".join(PAGES["README.md"].split())
    names = {spec.label: name for name, spec in SPECS.items()}
    found = re.findall(r"\*([A-Z][a-z\d ]+)\* \(([\d.]+ in \*\w+\*[^)]*)\)", text)
    assert {label for label, _ in found} == {"Cosine scale 2", "Extra noise", "Tile overlap", "Feather"}
    for label, values in found:
        for value, *presets in re.findall(r"([\d.]+) in \*(\w+)\*(?: and in \*(\w+)\*)?", values):
            for preset in filter(None, presets):
                assert value == written(preset_values(preset)[names[label]]), (label, preset)
    maxima = dict(re.findall(r"The maximum of \*([A-Z][a-z ]+)\* is ([\d.]+)\.", text))
    assert maxima == {label: written(SPECS[names[label]].maximum) for label in ("Extra noise", "Feather")}


def bench_tables() -> dict[str, dict[str, dict[str, str]]]:
    """Returns the tables of measurements with 64 prompts in bench/README.md, by scale, row label and column."""
    text = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    found = {}
    for scale, table in re.findall(r"#### (\dx), \d+ pixels, 64 prompts.*?\n\n(\|.*?)\n\n", text, re.DOTALL):
        head, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
        found[scale] = {line[0]: dict(zip(head, (cell.split(" ")[0] for cell in line))) for line in lines}
    return found


MEASURED = {
    "images with an extra subject": ("any extra", True, ""),
    "images with the right subject": ("right subject", True, ""),
    "foreign spots per image": ("blobs", False, ""),
    "closeness to the base image": ("structure dB", False, " dB"),
    "error in the amount of detail": ("spectrum", False, ""),
    "cost in base images": ("units", False, ""),
}
"""Maps each row of the table of measurements in README to the column of bench/README.md with the same numbers.

A value contains the heading of the column, whether README shows the numbers in percent, and the unit that README adds.
"""


def measured(table: dict[str, dict[str, str]], method: str, row: str) -> str:
    """Formats the number of `method` in a table of bench/README.md, as README shows it in the row `row`."""
    column, percent, unit = MEASURED[row]
    number = table[method][column]
    return f"{100 * float(number):.0f} %" if percent else number + unit


def test_costs_in_sentences_of_readme_are_correct() -> None:
    text = " ".join(PAGES["README.md"].split())
    costs = {preset: cells for preset, _, *cells in rows("| Preset | For", "README.md")}
    ((preset, scale, cost),) = re.findall(
        r"with the preset \*(\w+)\*, an image at (\d)x takes ([\d.]+) times as long", text
    )
    assert cost == costs[preset][(2, 3, 4, 6, 8).index(int(scale))]
    ((first, second, preset, *stated),) = re.findall(
        r"With the (\d) or (\d) steps that these models need, a whole run with \*(\w+)\* takes ([\d.]+) times "
        r"as long as its base image at 2x, and ([\d.]+) times as long at 4x",
        text,
    )
    for steps in (int(first), int(second)):
        plans = [parse_settings({"scale": scale, "preset": preset}) for scale in (2, 4)]
        costs_of_runs = [run_costs(make_plan(one, (128, 128)), one, steps=steps, two_calls=False) for one in plans]
        assert stated == [f"{1 + sum(one.stages) / one.base:.1f}" for one in costs_of_runs]


def cost_at(timesteps: Iterable[int], settings: Settings) -> float:
    """Returns the cost of a run with one stage that calls the model at these timesteps, in base images of 20 steps."""
    (stage,) = make_plan(settings, (128, 128)).stages
    cells = sum(stage.cells_at(weights_at(t, settings).dilated) for t in timesteps)
    return 1 + cells / (20 * 128 * 128)


def test_readme_explains_why_two_costs_of_balanced_differ() -> None:
    """The estimate assumes the timesteps of Euler. At the timesteps of the measurements, the cost is lower."""
    text = " ".join(PAGES["README.md"].split())
    ((*estimated, at_2x, at_4x),) = re.findall(
        r"For \*Balanced\*, the difference is larger: the numbers are ([\d.]+) at 2x and ([\d.]+) at 4x, "
        r"but the costs in this table plus 1 are only ([\d.]+) and ([\d.]+)\.",
        text,
    )
    costs = {preset: cells for preset, _, *cells in rows("| Preset | For", "README.md")}
    assert estimated == [costs["Balanced"][0], costs["Balanced"][2]]
    for scale, stated in ((2, at_2x), (4, at_4x)):
        settings = parse_settings({"scale": scale, "preset": "Balanced"})
        assert stated == f"{1 + float(bench_tables()[f'{scale}x']['Balanced']['units']):.1f}"
        of_ddim = timesteps(settings.hires_steps, settings.denoising_strength)
        assert stated == f"{cost_at(of_ddim, settings):.1f}"
        # the only step of a stage in which the tiles are skipped is the first one
        assert [weights_at(t, settings).dilated == 1 for t in of_ddim] == [True, *[False] * (len(of_ddim) - 1)]


def test_the_table_of_measurements_in_readme_equals_the_tables_in_bench() -> None:
    tables = bench_tables()
    (head,) = re.findall(r"^\| Measured \|(.*)\|$", PAGES["README.md"], re.MULTILINE)
    methods = [method.strip() for method in head.split("|")]
    table = rows("| Measured", "README.md")
    assert {row.partition(", ")[0] for row, *_ in table} == set(MEASURED)
    for label, *cells in table:
        row, _, scale = label.partition(", ")
        assert cells == [measured(tables[scale], method, row) for method in methods], label


COMPARING = re.compile(
    r"\b(than|against|compared|fewer|better|worse|faster|slower|sharper|closer|as (?:much|many|often|frequent) as)\b"
)
METHODS = re.compile(r"\b(Paper|Balanced|Fast|Turbo|[Hh]ires fix|ESRGAN|Ultimate SD|PiD|SeedVR2|MultiDiffusion)\b")


def sentences(page: str) -> list[str]:
    """Returns the sentences of a page, without its tables, headings, images, HTML and code."""
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    text = "\n".join("" if line.startswith(("|", "#", "!", "<")) else line for line in text.splitlines())
    paragraphs = re.split(r"\n\s*\n|\n(?=\* |\d\. |\*\*)", text)
    return [part for one in paragraphs for part in re.split(r"(?<=[.!?])\s+", " ".join(one.split()))]


HIRES = re.compile(r"[Hh]ires fix(?: with an ESRGAN)?(?: at denoising strength| ESRGAN)? (0\.\d)")


def methods_in(sentence: str, methods: Iterable[str]) -> set[str]:
    """Returns the elements of `methods` that occur in a sentence."""
    strengths = set(HIRES.findall(sentence))
    if strengths:
        # a sentence such as "at denoising strength 0.5 ..., and at 0.3 ..." names both strengths
        strengths |= set(re.findall(r"\bat (0\.\d)\b", sentence))
    return {method for method in methods if method in sentence or method[-3:] in strengths}


def results_in(sentence: str) -> set[str]:
    """Returns the measured numbers of a sentence.

    Leaves out numbers that are conditions of the measurement: scales, strengths, steps and numbers of prompts.
    """
    conditions = r"strength [\d.]+|\bat 0\.\d\b|\b\d+ steps"
    return set(re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?: %)?(?![\w.]*\d|x| prompts)", re.sub(conditions, "", sentence)))


def measured_cells() -> dict[tuple[str, str], set[str]]:
    """Returns the numbers in README's table of measurements, grouped by method and scale."""
    (head,) = re.findall(r"^\| Measured \|(.*)\|$", PAGES["README.md"], re.MULTILINE)
    cells: dict[tuple[str, str], set[str]] = {}
    for label, *row in rows("| Measured", "README.md"):
        for method, cell in zip(head.split("|"), row):
            cells.setdefault((method.strip(), label.rpartition(", ")[2]), set()).add(cell.removesuffix(" dB"))
    return cells


def cells_of_the_model_without_zoomed_crops() -> dict[tuple[str, str], set[str]]:
    """Returns the shares of images with an extra subject, grouped by method and scale.

    They are from the table in docs/history.md about the model that was trained without zoomed crops.
    """
    history = (ROOT / "docs" / "history.md").read_text(encoding="utf-8")
    table = re.search(r"## A model without zoomed crops.*?\n\n(\|.*?)\n\n", history, re.DOTALL)
    assert table
    head, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines())
    column = head.index("any extra")
    return {(line[0], line[1]): {f"{100 * float(line[column].split()[0]):.0f} %"} for line in lines}


def cells_of_a_webui() -> dict[tuple[str, str], set[str]]:
    """Returns the times that bench.host measured at 2x, grouped by method and scale.

    They are from a table in bench/README.md. The unit is the time of one base image.
    """
    text = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    table = re.search(r"\n\n(\| Method, in bench\.host .*?)\n\n", text, re.DOTALL)
    assert table
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()[2:]]
    return {(method.replace(", denoising strength", ""), "2x"): {time} for method, time, _ in lines}


def comparing_sentences() -> list[str]:
    """Returns the sentences of README that name a method and compare it with others or state a result in percent."""
    found = [one for one in sentences("README.md") if METHODS.search(one)]
    return [one for one in found if COMPARING.search(one) or re.search(r"\d %", one)]


def test_every_comparing_sentence_has_numbers_from_the_tables() -> None:
    """A sentence that compares methods must state at least one measured number for each method that it names.

    Every measured number must be in the table that belongs to the sentence, for a method and a scale in the sentence.
    """
    of_model, of_other, in_webui = measured_cells(), cells_of_the_model_without_zoomed_crops(), cells_of_a_webui()
    comparing = comparing_sentences()
    assert len(comparing) >= 6
    for one in comparing:
        cells = of_other if "zoomed crops" in one else in_webui if "bench.host" in one else of_model
        methods, scales = methods_in(one, {method for method, _ in cells}), set(re.findall(r"\b(\d)x\b", one))
        allowed = [set().union(*(cells.get((method, f"{scale}x"), ()) for scale in scales)) for method in methods]
        results = results_in(one)
        assert results, f"no number in this sentence: {one}"
        assert results <= set().union(*allowed), f"a number is not in the tables: {one}"
        assert all(numbers & results for numbers in allowed), f"a method has no number: {one}"


def test_the_result_of_the_blind_comparison_in_readme_is_correct() -> None:
    """Compares the sentence in README with the table of preferences in bench/README.md."""
    text = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    table = re.search(r"\n(\| Scale \| Pairs \| (\w+) preferred \| (\w+) preferred .*?)\n\n", text, re.DOTALL)
    assert table
    counts = [[int(cell) for cell in line.strip("|").split("|")[1:]] for line in table[1].splitlines()[2:]]
    pairs, first, second, even = map(sum, zip(*counts))
    assert pairs == first + second + even
    sentence = (
        r"judged (\d+) pairs .*? They preferred \*(\w+)\* in (\d+) pairs and \*(\w+)\* in (\w+)\. "
        r"In (\d+) pairs, they had no preference"
    )
    found = re.search(sentence, " ".join(PAGES["README.md"].split()))
    assert found
    assert found.groups() == (str(pairs), table[2], str(first), table[3], str(second or "none"), str(even))
    assert table[2] == DEFAULT_PRESET


def test_the_documented_order_of_the_script_arguments_is_correct() -> None:
    (order,) = re.findall(r"`(enabled, preset,[^`]*)`", PAGES["docs/api.md"])
    assert tuple(re.split(r",\s+", order)) == NAMES


@pytest.mark.parametrize("page", PAGES)
def test_every_linked_image_and_page_exists(page: str) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", PAGES[page]):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target


def test_the_entry_for_the_webuis_list_of_extensions_is_complete() -> None:
    (file,) = (ROOT / ".github" / "extension-index").iterdir()
    entry = json.loads(file.read_text(encoding="utf-8"))
    # "url" is added only when the entry is sent to the webui's list
    assert set(entry) - {"url"} == {"name", "description", "tags"}
    assert entry.get("url", f"/{file.stem}.git").endswith(f"/{file.stem}.git")
    # the webui's list uses these tags for extensions that change how images are created
    assert set(entry["tags"]) <= {"script", "manipulations"}


TEXTS_TO_COPY = [ROOT / page for page in PAGES] + [
    path for folder in (".github", "localizations") for path in sorted((ROOT / folder).rglob("*.*")) if path.is_file()
]
"""Files from which users and contributors copy addresses and commands."""


@pytest.mark.parametrize("path", TEXTS_TO_COPY, ids=lambda path: path.name)
def test_addresses_contain_no_placeholder(path: Path) -> None:
    """If users copy an address with a placeholder, the webui's error message does not mention the placeholder."""
    text = path.read_text(encoding="utf-8")
    addresses = re.findall(r"https?://[^\s)`\"'>]+", text)
    assert [one for one in addresses if re.search(r"OWNER|YOUR|EXAMPLE|example\.|<|\{", one)] == []
    assert "OWNER" not in text
