"""Formats the table: every statistic with its interval, and a mark that compares it with the same column of one row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.quality.configurations import PAPER
from bench.quality.features import Statistic

RESAMPLES = 400
SEED = 5
LEVEL = 0.95


@dataclass(frozen=True)
class Column:
    """A column with one statistic, whose key is `name`.

    `better` is -1 if smaller values are better, 1 if larger values are better, and 0 if neither is better.
    """

    name: str
    title: str
    better: int
    digits: int = 2  # after the decimal point


COLUMNS = (
    Column("extra_subjects", "subjects - 1", -1),
    Column("any_extra", "any extra", -1),
    Column("crops_with_subject", "subject in crops", -1, 3),
    Column("right_subject", "right subject", 1),
    Column("right_ground", "right ground", 1),
    Column("blobs", "blobs", -1),
    Column("structure", "structure dB", 1, 1),
    Column("spectrum", "spectrum", -1),
    Column("high_frequencies", "HF share", 0, 4),
    Column("frechet_whole", "Fréchet whole", -1, 1),
    Column("frechet_crops", "Fréchet crops", -1, 1),
    Column("seam", "seam", -1, 3),
    Column("comb", "comb", -1),
    Column("phases", "phases", -1),
    Column("anisotropy", "anisotropy", 0, 3),
    Column("tone", "tone", -1, 3),
    Column("subject_colour", "subject colour", -1, 3),
    Column("ground_colour", "ground colour", -1, 3),
    Column("brisque", "BRISQUE", -1, 1),
)


@dataclass(frozen=True)
class Estimate:
    """The value of a statistic, the limits of its confidence interval, and its value in each resample, (RESAMPLES,)."""

    value: float
    low: float
    high: float
    draws: np.ndarray


def estimate(statistic: Statistic, pictures: int) -> Estimate:
    """Estimates a statistic of `pictures` images and its interval by a bootstrap over the images.

    All configurations use the same resamples of the images, so two configurations can be compared in pairs.
    """
    rng = np.random.default_rng((SEED, pictures))
    draws = np.array([statistic(rng.integers(0, pictures, pictures)) for _ in range(RESAMPLES)])
    return Estimate(statistic(np.arange(pictures)), *_interval(draws), draws)


def _interval(draws: np.ndarray) -> tuple[float, float]:
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(draws, (tail, 100 - tail))
    return float(low), float(high)


def differs(a: Estimate, b: Estimate) -> int:
    """Returns 1 if a is larger than b, -1 if a is smaller, and 0 if the paired bootstrap finds no difference."""
    low, high = _interval(a.draws - b.draws)
    return int(low > 0) - int(high < 0)


@dataclass(frozen=True)
class Row:
    """One configuration at one scale: statistics by key, and the cost, the seconds and the peak memory of one image."""

    name: str
    estimates: dict[str, Estimate]
    units: float
    seconds: float
    bytes_: int


def make_row(name: str, lines: Sequence[dict[str, Any]], statistics: dict[str, Statistic], bytes_: int) -> Row:
    """Creates the row of a configuration from its lines in results.jsonl and from the statistics of `Truth`."""
    keys = {key for line in lines for key, value in line["metrics"].items() if value is not None}
    of_pictures = {key: _mean_of(lines, key) for key in keys}
    found = {key: estimate(statistic, len(lines)) for key, statistic in {**of_pictures, **statistics}.items()}
    units, seconds = (float(np.mean([line[key] for line in lines])) for key in ("units", "seconds"))
    return Row(name, found, units, seconds, bytes_)


def _mean_of(lines: Sequence[dict[str, Any]], key: str) -> Statistic:
    # None becomes NaN; the color changes are None if the detector finds no subject in the base image
    values = np.array([line["metrics"][key] for line in lines], float)
    return lambda chosen: float(np.nanmean(values[chosen]))


def markdown(rows: Sequence[Row], title: str, against: str = PAPER) -> str:
    """Formats the table in Markdown. Each number has a mark that compares it with the row `against` (see `cell`)."""
    other = next((row for row in rows if row.name == against), None)
    titles = ["configuration", *(column.title for column in COLUMNS), "units", "s", "MiB"]
    lines = [f"## {title}", "", _line(titles), _line(["---"] * len(titles))]
    for row in rows:
        cells = [cell(row, other, column) for column in COLUMNS]
        lines.append(_line([row.name, *cells, f"{row.units:.1f}", f"{row.seconds:.2f}", f"{row.bytes_ / 2**20:.0f}"]))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def cell(row: Row, other: Row | None, column: Column) -> str:
    """Formats one number with half the width of its interval and a mark.

    The mark compares the number with the other row. `=` means that the paired bootstrap finds no difference. `+` means
    better, and `-` means worse. `≠` means different, in a column where neither smaller nor larger values are better.
    """
    found = row.estimates.get(column.name)
    if found is None:
        return ""
    half, mark = (found.high - found.low) / 2, ""
    if other is not None and row is not other and column.name in other.estimates:
        sign = differs(found, other.estimates[column.name])
        mark = " =" if sign == 0 else " ≠" if column.better == 0 else " +" if sign == column.better else " -"
    return f"{found.value:.{column.digits}f} ±{half:.{column.digits}f}{mark}"
