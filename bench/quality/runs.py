"""Makes the missing images, measures each of them once, and saves one JSON line for every finished image."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bench.peak_bytes import PeakBytes
from bench.quality import artefacts, repetition, spectrum
from bench.quality.brisque import brisque
from bench.quality.configurations import FAST_PRESET, Configuration
from bench.quality.denoiser import NATIVE
from bench.quality.pictures import downscale, read, write
from bench.quality.ways import Batch, Sampling, Studio, batches
from bench.quality.worlds import World
from lib_demofusion.method.plan import CELL, make_plan
from lib_demofusion.method.views import view_starts

PICTURES_AT_ONCE = {1: 16, 2: 8, 3: 4, 4: 4}
"""Batch size by scale. It is smaller for large images, whose views already fill the model's batch."""


@dataclass(frozen=True)
class Job:
    """One configuration at one scale."""

    configuration: Configuration
    scale: int


class Store:
    """Finished images in a folder: PNG files, and one line for each image in results.jsonl.

    A line is valid only for the same checkpoint, sampling and settings. The last line of an image counts.
    """

    def __init__(self, folder: Path, origin: str):
        self.folder = folder
        self._origin = origin
        self._file = folder / "results.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = {self._place(line): line for line in self._read()}

    def _read(self) -> Iterable[dict[str, Any]]:
        text = self._file.read_text(encoding="utf-8") if self._file.exists() else ""
        if text and not text.endswith("\n"):
            # otherwise the next line would be appended to an incomplete line of an interrupted run
            self._append("\n")
        for line in text.splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                # an interrupted run may have written only a part of its last line
                continue

    @staticmethod
    def _place(line: dict[str, Any]) -> tuple[str, int, int]:
        return line["configuration"], line["scale"], line["number"]

    def key(self, configuration: Configuration) -> str:
        """Returns a short text that changes with everything that affects a configuration's images."""
        return hashlib.sha256((self._origin + configuration.fingerprint()).encode()).hexdigest()[:16]

    def path(self, job: Job, number: int) -> Path:
        """Returns the path of an image."""
        name = job.configuration.name.lower().replace(" ", "-").replace("/", "-").replace(",", "-")
        return self.folder / "pictures" / f"{job.scale}x" / name / f"{number:03d}.png"

    def line(self, job: Job, number: int) -> dict[str, Any] | None:
        """Returns the line of a finished image."""
        line = self._lines.get((job.configuration.name, job.scale, number))
        valid = line is not None and line["key"] == self.key(job.configuration) and self.path(job, number).exists()
        return line if valid else None

    def lines(self, job: Job, numbers: Sequence[int]) -> list[dict[str, Any]] | None:
        """Returns the lines of images by number, or None if one is missing."""
        found = [self.line(job, number) for number in numbers]
        return [line for line in found if line is not None] if None not in found else None

    def add(self, job: Job, number: int, picture: np.ndarray, values: dict[str, Any]) -> None:
        """Writes an image, then its line."""
        write(self.path(job, number), picture)
        line = {
            "configuration": job.configuration.name,
            "scale": job.scale,
            "number": number,
            "key": self.key(job.configuration),
            **values,
        }
        self._append(json.dumps(line) + "\n")
        self._lines[self._place(line)] = line

    def _append(self, text: str) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(text)


def origin(weights: Sequence[Path], sampling: Sampling, world: World) -> str:
    """Returns a text that changes with the weight files, the sampling and the world."""
    digest = "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in weights)
    return digest + world.name + json.dumps(asdict(sampling), sort_keys=True)


class Bases:
    """The base images, which are made once and kept in the folder."""

    def __init__(self, studio: Studio, store: Store, made_by: str):
        self._studio = studio
        self._folder = store.folder / f"bases-{hashlib.sha256(made_by.encode()).hexdigest()[:12]}"

    def prepare(self, numbers: Sequence[int]) -> None:
        """Makes the missing base images."""
        missing = [number for number in numbers if not self._latent(number).exists()]
        size = PICTURES_AT_ONCE[1]
        for first in tqdm(range(0, len(missing), size), desc="base images", disable=None if missing else True):
            group = missing[first : first + size]
            latents = self._studio.base(group)
            for number, latent, picture in zip(group, latents, self._studio.decode(latents)):
                write(self.picture(number), picture)
                torch.save(latent.clone(), self._latent(number))

    def batch(self, numbers: Sequence[int]) -> Batch:
        """Returns the bases with these numbers."""
        latents = torch.stack([torch.load(self._latent(number), weights_only=True) for number in numbers])
        return Batch(list(numbers), latents, np.stack([read(self.picture(number)) for number in numbers]))

    def picture(self, number: int) -> Path:
        """Returns the file of a base image."""
        return self._folder / f"{number:03d}.png"

    def _latent(self, number: int) -> Path:
        return self._folder / f"{number:03d}.pt"


def run(studio: Studio, store: Store, bases: Bases, jobs: Sequence[Job], numbers: Sequence[int]) -> None:
    """Makes and measures every image without a valid line."""
    missing = {job: [n for n in numbers if store.line(job, n) is None] for job in jobs}
    with tqdm(total=sum(map(len, missing.values())), unit="image", smoothing=0.05, disable=None) as progress:
        for job, left in missing.items():
            progress.set_description(f"{job.configuration.name} {job.scale}x")
            for part in batches(len(left), PICTURES_AT_ONCE[job.scale]):
                finish(studio, store, bases.batch([left[i] for i in part]), job)
                progress.update(len(part))


def finish(studio: Studio, store: Store, batch: Batch, job: Job) -> None:
    """Makes, measures and stores one batch."""
    began = time.perf_counter()
    pictures, units = studio.make(job.configuration, batch, job.scale)
    seconds = (time.perf_counter() - began) / len(pictures)
    for number, base, picture in zip(batch.numbers, batch.bases, pictures):
        values = {"prompt": studio.world.prompt(number), "units": round(units, 4), "seconds": round(seconds, 4)}
        store.add(job, number, picture, {**values, "metrics": measure(picture, base, job, studio.world, number)})


def measure(picture: np.ndarray, base: np.ndarray, job: Job, world: World, number: int) -> dict[str, float | None]:
    """Computes the metrics of one image.

    A true rendering shows another scene than the base, so it is compared with itself.
    """
    is_true = job.configuration.kind == "true"
    if is_true:
        base = downscale(picture, base.shape[:2])
    rows, columns = seams(job)
    return {
        **what_it_shows(picture, base, world, number, is_true),
        "blobs": repetition.excess_blobs(picture, base),
        "structure": None if is_true else artefacts.structure_psnr(picture, base),
        "high_frequencies": spectrum.high_frequency_ratio(picture),
        "seam": artefacts.seam_gradient_ratio(picture, rows, columns, CELL * job.scale),
        "comb": artefacts.comb_ratio(picture, job.scale),
        "phases": artefacts.phase_ratio(picture, job.scale),
        "anisotropy": artefacts.anisotropy(picture),
        "tone": None if is_true else artefacts.tone_drift(picture, base),
        "brisque": brisque(picture),
    }


def what_it_shows(
    picture: np.ndarray, base: np.ndarray, world: World, number: int, is_true: bool
) -> dict[str, float | None]:
    """Returns the detector's results for the whole image and for 1:1 crops, and the colours of subject and ground."""
    sight, place = world.sight(picture, number), world.sight(base, number).place
    subject, ground = (None, None)
    if not is_true and place is not None:
        subject, ground = artefacts.colour_changes(downscale(picture, base.shape[:2]), base, place)
    return {
        "extra_subjects": sight.subjects - 1,
        "any_extra": int(sight.subjects > 1),
        "crops_with_subject": world.crops(picture),
        "right_subject": int(sight.right_subject),
        "right_ground": int(sight.right_ground),
        "subject_colour": subject,
        "ground_colour": ground,
    }


def seams(job: Job) -> tuple[list[int], list[int]]:
    """Returns the first pixels after the borders of the last stage's unshifted views, per axis.

    Configurations without views are measured at the borders of the preset Fast's views, so that you can compare them.
    """
    configuration = job.configuration if job.configuration.kind == "demofusion" else FAST_PRESET
    stage = make_plan(configuration.settings_at(job.scale), (NATIVE, NATIVE)).stages[-1]
    lines = []
    for length, window, stride in zip(stage.size, stage.window, stage.stride):
        starts = view_starts(length, window, stride)
        edges = set(starts) | {start + window for start in starts}
        lines.append([CELL * edge for edge in sorted(edges - {0, length})])
    return lines[0], lines[1]


def peak_memory(studio: Studio, configuration: Configuration, scale: int, batch: Batch) -> int:
    """Returns the peak bytes of tensors while one image is sampled view by view, without weights and decoder.

    Configurations with views are measured with a network that needs no memory. The memory of the real network for one
    view is added.
    """
    lone = Studio(studio.model, replace(studio.sampling, steps=2, rows=1, bfloat16=False), studio.world)
    if configuration.kind != "demofusion":
        with PeakBytes() as bytes_:
            lone.latents(configuration, batch, scale)
        return bytes_.peak
    with PeakBytes() as view:
        lone.guided(batch.numbers).whole(batch.latents, 500)
    with network_replaced(lone), PeakBytes() as bytes_:
        lone.latents(configuration, batch, scale)
    return bytes_.peak + view.peak


@contextmanager
def network_replaced(studio: Studio) -> Iterator[None]:
    """Replaces the UNet by a network that returns its input."""
    unet = studio.unet
    studio.unet = _Through()
    try:
        yield
    finally:
        studio.unet = unet


class _Through(torch.nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return x
