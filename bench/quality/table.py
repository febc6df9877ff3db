"""Formats the table: every statistic of every configuration with its interval, and the differences from one row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.quality.configurations import PAPER
from bench.quality.features import SIDE, Moments, Network, Whitening, crops, frechet, moments, whitening
from bench.quality.intervals import Estimate, Statistic, differs, estimate
from bench.quality.pictures import downscale
from bench.quality.spectrum import log_spectrum, spectrum_distance


@dataclass(frozen=True)
class Column:
    """One statistic. `better` is -1 if smaller is better, 1 if larger is better, and 0 if neither is."""

    name: str
    title: str
    better: int
    digits: int = 2


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


class Summary:
    """The features of a set of images from which the statistics are computed. Each image is read once."""

    def __init__(self, pictures: Sequence[np.ndarray], network: Network):
        self.spectra = np.stack([log_spectrum(picture) for picture in pictures])
        self.whole = network(np.stack([downscale(picture, (SIDE, SIDE)) for picture in pictures]))  # (N, F)
        found = [network(crops(picture, number)) for number, picture in enumerate(pictures)]
        self.crops = np.stack(found)  # (N, CROPS, F)


class Truth:
    """The true renderings with which every set is compared."""

    def __init__(self, summary: Summary):
        self._summary = summary
        self._whole = _Space(summary.whole[:, None])
        self._crops = _Space(summary.crops)

    def statistics(self, summary: Summary) -> dict[str, Statistic]:
        """Returns the statistics of a whole set."""
        return {
            "spectrum": lambda chosen: spectrum_distance(summary.spectra[chosen], self._summary.spectra),
            "frechet_whole": self._whole.distance(summary.whole[:, None]),
            "frechet_crops": self._crops.distance(summary.crops),
        }


class _Space:
    """Whitened features, and the Gaussian of the true features among them."""

    def __init__(self, features: np.ndarray):
        self._whiten: Whitening = whitening(features.reshape(-1, features.shape[-1]))
        true = moments(self._whiten(features))
        self._true = true.gaussian(np.arange(len(features)))

    def distance(self, features: np.ndarray) -> Statistic:
        found: Moments = moments(self._whiten(features))
        return lambda chosen: frechet(found.gaussian(chosen), self._true)


@dataclass(frozen=True)
class Row:
    """One configuration at one scale."""

    name: str
    estimates: dict[str, Estimate]
    units: float
    seconds: float
    bytes_: int


def make_row(name: str, lines: Sequence[dict[str, Any]], statistics: dict[str, Statistic], bytes_: int) -> Row:
    """Creates the row of a configuration from its images' lines and from the statistics of the whole set."""
    keys = {key for line in lines for key, value in line["metrics"].items() if value is not None}
    of_pictures = {key: _mean_of(lines, key) for key in keys}
    found = {key: estimate(statistic, len(lines)) for key, statistic in {**of_pictures, **statistics}.items()}
    units, seconds = (float(np.mean([line[key] for line in lines])) for key in ("units", "seconds"))
    return Row(name, found, units, seconds, bytes_)


def _mean_of(lines: Sequence[dict[str, Any]], key: str) -> Statistic:
    # NaN if an image has no such value, for instance the colour of a subject that the base does not show
    values = np.array([line["metrics"][key] for line in lines], float)
    return lambda chosen: float(np.nanmean(values[chosen]))


def markdown(rows: Sequence[Row], title: str, against: str = PAPER) -> str:
    """Formats the table in Markdown.

    Each number is followed by half the width of its interval and a mark. `=` means that the paired bootstrap finds no
    difference from the row `against`. `+` means better, `-` means worse, and `≠` means different where neither
    direction is better.
    """
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
    """Formats one number with its interval and mark."""
    found = row.estimates.get(column.name)
    if found is None:
        return ""
    half = (found.high - found.low) / 2
    return f"{found.value:.{column.digits}f} ±{half:.{column.digits}f} {mark(row, other, column)}".rstrip()


def mark(row: Row, other: Row | None, column: Column) -> str:
    """Compares the number with that of the other row."""
    if other is None or row is other or column.name not in other.estimates:
        return ""
    sign = differs(row.estimates[column.name], other.estimates[column.name])
    if sign == 0:
        return "="
    return "≠" if column.better == 0 else "+" if sign == column.better else "-"


def as_json(rows: Sequence[Row], against: str = PAPER) -> list[dict[str, Any]]:
    """Returns the table's contents as data for JSON."""
    other = next((row for row in rows if row.name == against), None)
    by_name: dict[str, Column] = {column.name: column for column in COLUMNS}

    def numbers(row: Row) -> dict[str, Any]:
        return {
            name: {"value": e.value, "low": e.low, "high": e.high, "mark": mark(row, other, by_name[name])}
            for name, e in row.estimates.items()
        }

    return [
        {"configuration": row.name, "units": row.units, "seconds": row.seconds, "bytes": row.bytes_, **numbers(row)}
        for row in rows
    ]
