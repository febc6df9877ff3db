"""Makes and measures every configuration's images, and writes tables and a contact sheet: python -m bench.quality.

After an interruption, the next start continues after the last finished image. Costs are in units: one unit is the cost
of a base pass, which evaluates one view of native size in every step. Costs do not include the base pass itself.
`results.jsonl` has one line for each image.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from bench.quality import table
from bench.quality.configurations import CONFIGURATIONS, FLOW_CONFIGURATIONS, PAPER
from bench.quality.denoiser import NATIVE
from bench.quality.features import Network
from bench.quality.pictures import read
from bench.quality.runs import Bases, Job, Store, origin, peak_memory, run
from bench.quality.ways import Sampling, Studio
from bench.quality.worlds import COLLAGES, WORLDS
from trial.collage.content import installed
from trial.sheet import contact_sheet
from trial.small_model import load

ON_THE_SHEET = 6
"""Number of prompts on the contact sheet."""


def options() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=WORLDS, default=COLLAGES.name, help="kind of prompts")
    parser.add_argument("--checkpoint", type=Path, help="another model for these prompts")
    parser.add_argument("--out", type=Path, default=Path("test-output/quality"), help="folder for results")
    parser.add_argument("--count", type=int, default=64, help="number of prompts; each has its own seed")
    parser.add_argument("--first", type=int, default=0, help="number of the first prompt and seed")
    parser.add_argument("--scales", type=int, nargs="+", choices=(2, 3, 4), default=[2, 4])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="configurations, by name or pattern")
    parser.add_argument(
        "--against", metavar="NAME", default=PAPER, help="configuration that all others are compared with"
    )
    parser.add_argument("--steps", type=int, default=Sampling.steps)
    parser.add_argument("--guidance", type=float, default=Sampling.guidance)
    parser.add_argument("--lora", type=Path, help="LoRA to add, such as the one for few steps")
    parser.add_argument("--lcm", action="store_true", help="use the sampler of consistency models instead of DDIM")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table-only", action="store_true", help="make no images; use those that are complete")
    args = parser.parse_args()
    args.checkpoint = args.checkpoint or WORLDS[args.world].checkpoint
    return args


def jobs_for(names: Sequence[str] | None, against: str, scales: Sequence[int]) -> list[Job]:
    """Returns the jobs to run, in the table's order."""
    every, patterns = [*CONFIGURATIONS, *FLOW_CONFIGURATIONS], [*(names or ()), against]
    unknown = [pattern for pattern in patterns if not any(_matches(row.name, [pattern]) for row in every)]
    if unknown:
        raise SystemExit(f"no configuration is named {', '.join(unknown)}")
    rows = [row for row in every if _matches(row.name, patterns)] if names else CONFIGURATIONS
    return [Job(configuration, scale) for scale in scales for configuration in rows if scale in configuration.scales]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Returns whether a row has one of these names, in which `*` matches any text."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def main() -> None:
    """Runs the jobs and writes table.md, table.json and a sheet for each scale."""
    args = options()
    try:
        # the tables need the photographs; without this call, a missing package would end the run after hours
        installed()
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from None
    torch.set_num_threads(args.threads)
    sampling = Sampling(args.steps, args.guidance, args.lcm, bfloat16=args.precision == "bfloat16")
    world = WORLDS[args.world]
    studio = Studio(load(args.checkpoint, changes=args.lora), sampling, world)
    made_by = origin([path for path in (args.checkpoint, args.lora) if path], sampling, world)
    store = Store(args.out, made_by)
    bases = Bases(studio, store, made_by)
    numbers = range(args.first, args.first + args.count)
    jobs = jobs_for(args.only, args.against, args.scales)
    if not args.table_only:
        bases.prepare(numbers)
        run(studio, store, bases, jobs, numbers)
    began, texts, data = time.time(), [heading(args)], {}
    for scale in args.scales:
        rows = rows_at(scale, [job for job in jobs if job.scale == scale], studio, store, bases, numbers)
        texts.append(table.markdown(rows, f"{scale}x, {NATIVE * 8 * scale} pixels", args.against))
        data[f"{scale}x"] = table.as_json(rows, args.against)
        shown = {number: world.prompt(number) for number in numbers[:ON_THE_SHEET]}
        save_sheet(args.out / f"sheet-{scale}x.png", rows, [job for job in jobs if job.scale == scale], store, shown)
    (args.out / "table.md").write_text("\n".join(texts), encoding="utf-8")
    (args.out / "table.json").write_text(json.dumps(data, indent=1), encoding="utf-8")
    print("\n".join(texts))
    print(f"table and sheets in {args.out}, {time.time() - began:.0f} s")


def heading(args: argparse.Namespace) -> str:
    """Describes the tables and how to read them."""
    pairs = f"{args.count} prompts from number {args.first} on"
    sampler = "LCM" if args.lcm else "DDIM"
    setting = f"{pairs}, {sampler}, {args.steps} steps, guidance {args.guidance:g}, {args.checkpoint.name}"
    interval = "Each number is followed by half of its 95 % interval and a mark"
    marks = "`+` better, `-` worse, `=` no significant difference, `≠` different in a column without a better direction"
    compared = f"The mark compares with the row {args.against} by a paired bootstrap"
    return f"# Methods for larger images\n\n{setting}. {interval}. {compared}: {marks}.\n"


def rows_at(
    scale: int, jobs: Sequence[Job], studio: Studio, store: Store, bases: Bases, numbers: Sequence[int]
) -> list[table.Row]:
    """Returns the rows of one scale for the configurations that are complete."""
    network, side = Network(), scale * NATIVE * 8
    truth = table.Truth(table.Summary([studio.world.true_rendering(number, side, 0) for number in numbers], network))
    rows = []
    for job in tqdm(jobs, desc=f"table {scale}x", unit="row", disable=None):
        lines = store.lines(job, numbers)
        if lines is None:
            continue
        summary = table.Summary([read(store.path(job, number)) for number in numbers], network)
        bytes_ = peak_memory(studio, job.configuration, scale, bases.batch(numbers[:1]))
        rows.append(table.make_row(job.configuration.name, lines, truth.statistics(summary), bytes_))
    return rows


def save_sheet(path: Path, rows: Sequence[table.Row], jobs: Sequence[Job], store: Store, shown: dict[int, str]) -> None:
    """Writes the contact sheet for the rows of one scale. `shown` contains the prompts of some images by number."""
    by_name = {job.configuration.name: job for job in jobs}
    columns = [
        (row.name, f"{row.units:.1f} units, {row.seconds:.1f} s", [store.path(by_name[row.name], n) for n in shown])
        for row in rows
    ]
    part = path.with_suffix(".part")
    contact_sheet(columns, list(shown.values())).save(part, "png")
    part.replace(path)


if __name__ == "__main__":
    main()
