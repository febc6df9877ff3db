"""Makes the missing images, measures each of them once, and saves one JSON line for every finished image."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bench.peak_bytes import PeakBytes
from bench.quality import metrics
from bench.quality.brisque import brisque
from bench.quality.configurations import FAST_PRESET, Configuration
from bench.quality.denoiser import NATIVE
from bench.quality.pictures import downscale, read, write
from bench.quality.ways import Batch, Sampling, Studio, batches
from bench.quality.worlds import World
from lib_demofusion.method.plan import CELL, make_plan
from lib_demofusion.method.views import view_starts
from trial.collage.detector import crops_with_subject
from trial.small_model import CHECKPOINT, LORA, load

PICTURES_AT_ONCE = {1: 16, 2: 8, 3: 4, 4: 4}
"""Maximum number of images that are made together, by scale. The scale 1 stands for base images."""


def parser(doc: str | None, out: Path) -> argparse.ArgumentParser:
    """Creates a parser with the options that bench.quality and bench.quality.strips share, with `out` for --out."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--out", type=Path, default=out, help="folder for results")
    found.add_argument("--threads", type=int, default=2)
    found.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    return found


@dataclass(frozen=True)
class Job:
    """One configuration at one scale."""

    configuration: Configuration
    scale: int


class Store:
    """Finished images in a folder: PNG files, and one line for each image in results.jsonl.

    `origin` is the result of the function `origin` below. A line is valid only if its image exists, and if `origin` and
    the values of the configuration have not changed since. If an image has several lines, the last one counts.
    """

    def __init__(self, folder: Path, origin: str):
        self.folder, self.origin = folder, origin
        self._file = folder / "results.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = {(line["configuration"], line["scale"], line["number"]): line for line in self._read()}

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

    def key(self, configuration: Configuration) -> str:
        """Returns a hash of the store's origin and of the configuration's values."""
        return hashlib.sha256((self.origin + configuration.fingerprint()).encode()).hexdigest()[:16]

    def path(self, job: Job, number: int) -> Path:
        """Returns the path of an image."""
        name = job.configuration.name.lower().replace(" ", "-").replace("/", "-").replace(",", "-")
        return self.folder / "pictures" / f"{job.scale}x" / name / f"{number:03d}.png"

    def line(self, job: Job, number: int) -> dict[str, Any] | None:
        """Returns the line of an image, or None if the image has no valid line."""
        line = self._lines.get((job.configuration.name, job.scale, number))
        valid = line is not None and line["key"] == self.key(job.configuration) and self.path(job, number).exists()
        return line if valid else None

    def lines(self, job: Job, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Returns the valid lines of the images with these numbers."""
        return [line for number in numbers if (line := self.line(job, number)) is not None]

    def add(self, job: Job, number: int, picture: np.ndarray, values: dict[str, Any]) -> None:
        """Writes an image, then its line."""
        write(self.path(job, number), picture)
        place = {"configuration": job.configuration.name, "scale": job.scale, "number": number}
        line = {**place, "key": self.key(job.configuration), **values}
        self._append(json.dumps(line) + "\n")
        self._lines[job.configuration.name, job.scale, number] = line

    def _append(self, text: str) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(text)


def origin(weights: Sequence[Path], sampling: Sampling, world: World) -> str:
    """Returns a text that is different for other weight files, another sampling or another world."""
    digest = "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in weights)
    return digest + world.name + json.dumps(asdict(sampling), sort_keys=True)


class Bases:
    """The base images of a store, which are made once and kept in the folder of the store."""

    def __init__(self, studio: Studio, store: Store):
        self._studio = studio
        self._folder = store.folder / f"bases-{hashlib.sha256(store.origin.encode()).hexdigest()[:12]}"

    def prepare(self, numbers: Sequence[int]) -> None:
        """Makes the missing base images."""
        missing = [number for number in numbers if not self._latent(number).exists()]
        groups = batches(missing, PICTURES_AT_ONCE[1])
        for group in tqdm(groups, desc="base images", disable=None if missing else True):
            latents = self._studio.base(group)
            for number, latent, picture in zip(group, latents, self._studio.decode(latents)):
                write(self._picture(number), picture)
                torch.save(latent.clone(), self._latent(number))

    def batch(self, numbers: Sequence[int]) -> Batch:
        """Returns the base images with these numbers."""
        latents = torch.stack([torch.load(self._latent(number), weights_only=True) for number in numbers])
        return Batch(list(numbers), latents, np.stack([read(self._picture(number)) for number in numbers]))

    def _picture(self, number: int) -> Path:
        return self._folder / f"{number:03d}.png"

    def _latent(self, number: int) -> Path:
        return self._folder / f"{number:03d}.pt"


class Benchmark:
    """Makes and measures images in a studio, and keeps them in a store."""

    def __init__(self, studio: Studio, store: Store):
        self.studio, self.store, self.bases = studio, store, Bases(studio, store)

    def run(self, jobs: Sequence[Job], numbers: Sequence[int]) -> None:
        """Makes and measures every image that has no valid line in the store."""
        self.bases.prepare(numbers)
        missing = {job: [n for n in numbers if self.store.line(job, n) is None] for job in jobs}
        with tqdm(total=sum(map(len, missing.values())), unit="image", smoothing=0.05, disable=None) as progress:
            for job, left in missing.items():
                progress.set_description(f"{job.configuration.name} {job.scale}x")
                for part in batches(left, PICTURES_AT_ONCE[job.scale]):
                    finish(self.studio, self.store, self.bases.batch(part), job)
                    progress.update(len(part))


def bundled(folder: Path, world: World, sampling: Sampling) -> Benchmark:
    """Returns a benchmark of the bundled model. The benchmark keeps its images in `folder`.

    If `sampling` uses the sampler LCM, the LoRA for few steps is added to the model.
    """
    files = [CHECKPOINT, LORA] if sampling.lcm else [CHECKPOINT]
    studio = Studio(load(CHECKPOINT, changes=LORA if sampling.lcm else None), sampling, world)
    return Benchmark(studio, Store(folder, origin(files, sampling, world)))


def finish(studio: Studio, store: Store, batch: Batch, job: Job) -> None:
    """Makes, measures and stores the images of one batch."""
    began = time.perf_counter()
    pictures, units = studio.make(job.configuration, batch, job.scale)
    seconds = (time.perf_counter() - began) / len(pictures)
    for number, base, picture in zip(batch.numbers, batch.bases, pictures):
        values = {"prompt": studio.world.prompt(number), "units": round(units, 4), "seconds": round(seconds, 4)}
        store.add(job, number, picture, {**values, "metrics": measure(picture, base, job, studio.world, number)})


def measure(picture: np.ndarray, base: np.ndarray, job: Job, world: World, number: int) -> dict[str, float | None]:
    """Computes the metrics of one image.

    A true rendering shows another scene than the base image. Its blobs are counted against a reduced copy of itself.
    All other metrics that need a base image are None.
    """
    is_true = job.configuration.kind == "true"
    if is_true:
        base = downscale(picture, base.shape[:2])
    sight, place = world.sight(picture, number), world.sight(base, number).place
    colors = (None, None) if is_true or place is None else metrics.color_changes(picture, base, place)
    rows, columns = seams(job)
    return {
        "extra_subjects": sight.subjects - 1,
        "any_extra": int(sight.subjects > 1),
        "crops_with_subject": crops_with_subject(picture),
        "right_subject": int(sight.right_subject),
        "right_ground": int(sight.right_ground),
        "subject_colour": colors[0],
        "ground_colour": colors[1],
        "blobs": metrics.excess_blobs(picture, base),
        "structure": None if is_true else metrics.structure_psnr(picture, base),
        "high_frequencies": metrics.high_frequency_ratio(picture),
        "seam": metrics.seam_gradient_ratio(picture, rows, columns, CELL * job.scale),
        "comb": metrics.comb_ratio(picture, job.scale),
        "phases": metrics.phase_ratio(picture, job.scale),
        "anisotropy": metrics.anisotropy(picture),
        "tone": None if is_true else metrics.tone_drift(picture, base),
        "brisque": brisque(picture),
    }


def seams(job: Job) -> tuple[list[int], list[int]]:
    """Returns the rows and columns of the first pixels after the borders of the last stage's tiles.

    Tiles that *Jitter* moves are measured at their original positions. Methods other than DemoFusion are measured at
    the borders of the tiles of *Fast*, so that all configurations can be compared.
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
    """Measures the peak memory of the tensors in bytes while one image is sampled in float32, one view at a time.

    The weights and the decoding of the final image are not included. To save time, the stages of DemoFusion run with a
    network that returns its input. The memory of the UNet for one base image is measured separately and added.
    """
    if not configuration.uses_model:
        return 0
    lone = Studio(studio.model, replace(studio.sampling, steps=2, rows=1, bfloat16=False), studio.world)
    with PeakBytes() as view:
        if configuration.kind == "demofusion":
            lone.guided(batch.numbers).whole(batch.latents, 500)
            lone.unet = _Through()
    with PeakBytes() as stages:
        lone.latents(configuration, batch, scale)
    return view.peak + stages.peak


class _Through(torch.nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return x
