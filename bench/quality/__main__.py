"""Makes and measures the images of every configuration, and writes tables and contact sheets: python -m bench.quality.

A configuration is a method for larger images with its settings. If you interrupt the command, the next start makes only
the images that are missing. Costs are in units. One unit is the cost of the base pass, in which the model evaluates one
image of native size in every step. The cost of a configuration does not include the base pass. The file `results.jsonl`
in the output folder has one line for each image.
"""

from __future__ import annotations

import argparse
import fnmatch
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from bench.quality import table
from bench.quality.configurations import CONFIGURATIONS, FLOW_CONFIGURATIONS, PAPER
from bench.quality.denoiser import NATIVE
from bench.quality.features import Network, Summary, Truth
from bench.quality.pictures import read
from bench.quality.runs import Benchmark, Job, bundled, parser, peak_memory
from bench.quality.ways import Sampling, few_steps
from bench.quality.worlds import COLLAGES, WORLDS
from trial.collage.content import installed
from trial.sheet import contact_sheet
from trial.small_model import CHECKPOINT

ON_THE_SHEET = 6
"""Maximum number of prompts on a contact sheet."""


def options() -> argparse.Namespace:
    """Parses the command line."""
    found = parser(__doc__, Path("test-output/quality"))
    found.add_argument("--world", choices=WORLDS, default=COLLAGES.name, help="backgrounds: photographs or flat colors")
    found.add_argument("--count", type=int, default=64, help="number of prompts; each has its own seed")
    found.add_argument("--first", type=int, default=0, help="number of the first prompt and seed")
    found.add_argument("--scales", type=int, nargs="+", choices=(2, 3, 4), default=[2, 4])
    found.add_argument("--only", nargs="+", metavar="NAME", help="configurations to run: names, or patterns with *")
    found.add_argument("--against", metavar="NAME", default=PAPER, help="configuration to compare all others with")
    found.add_argument("--few-steps", type=int, metavar="STEPS", help="use the LoRA for few steps, with STEPS steps")
    return found.parse_args()


def jobs_for(names: Sequence[str] | None, against: str, scales: Sequence[int]) -> list[Job]:
    """Returns the jobs to run, in the order of the table.

    `names` can contain patterns, in which `*` matches any text. The configuration `against` is added to the named ones.
    Without `names`, all configurations run, except for those in FLOW_CONFIGURATIONS. Raises SystemExit if a name
    matches no configuration.
    """
    every, patterns = [*CONFIGURATIONS, *FLOW_CONFIGURATIONS], [*(names or ()), against]
    unknown = [one for one in patterns if not fnmatch.filter([row.name for row in every], one)]
    if unknown:
        raise SystemExit(
            f"No configuration is named {', '.join(unknown)}. bench/quality/configurations.py lists the names."
        )
    named = [row for row in every if any(fnmatch.fnmatchcase(row.name, one) for one in patterns)]
    return [Job(row, scale) for scale in scales for row in (named if names else CONFIGURATIONS)]


def main() -> None:
    """Runs the jobs. Writes table.md, which has a table for each scale, and a contact sheet for each scale."""
    args = options()
    try:
        # fails at once if the cut-outs and photographs are missing; otherwise, `true_rendering` could fail hours later
        installed()
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from None
    torch.set_num_threads(args.threads)
    exact, world = args.precision == "float32", WORLDS[args.world]
    sampling = few_steps(args.few_steps, not exact) if args.few_steps else Sampling(bfloat16=not exact)
    benchmark = bundled(args.out, world, sampling)
    numbers = range(args.first, args.first + args.count)
    benchmark.run(jobs_for(args.only, args.against, args.scales), numbers)
    began, texts = time.time(), [heading(args, sampling)]
    for scale in args.scales:
        jobs = jobs_for(args.only, args.against, [scale])
        rows = rows_at(scale, jobs, benchmark, numbers)
        texts.append(table.markdown(rows, f"{scale}x, {NATIVE * 8 * scale} pixels", args.against))
        save_sheet(args.out / f"sheet-{scale}x.png", rows, jobs, benchmark, numbers[:ON_THE_SHEET])
    (args.out / "table.md").write_text("\n".join(texts), encoding="utf-8")
    print("\n".join(texts))
    print(f"The table and the sheets, made in {time.time() - began:.0f} s, are in {args.out}.")


def heading(args: argparse.Namespace, sampling: Sampling) -> str:
    """Returns the title of table.md, the parameters of the sampling, and the meaning of the marks."""
    pairs = f"{args.count} prompts from number {args.first} on"
    sampler = f"{'LCM' if sampling.lcm else 'DDIM'}, {sampling.steps} steps, guidance {sampling.guidance:g}"
    interval = "Each number is followed by half the width of its 95 % confidence interval and by a mark"
    marks = "`+` better, `-` worse, `=` no significant difference, `≠` different in a column without a better direction"
    compared = f"The mark compares with the row {args.against} by a paired bootstrap"
    return f"# Methods for larger images\n\n{pairs}, {sampler}, {CHECKPOINT.name}. {interval}. {compared}: {marks}.\n"


def rows_at(scale: int, jobs: Sequence[Job], benchmark: Benchmark, numbers: Sequence[int]) -> list[table.Row]:
    """Returns the rows of the table at one scale. `numbers` are the numbers of the prompts."""
    studio, store = benchmark.studio, benchmark.store
    network, side = Network(), scale * NATIVE * 8
    truth = Truth(Summary([studio.world.true_rendering(number, side, 0) for number in numbers], network))
    rows = []
    for job in tqdm(jobs, desc=f"table {scale}x", unit="row", disable=None):
        summary = Summary([read(store.path(job, number)) for number in numbers], network)
        bytes_ = peak_memory(studio, job.configuration, scale, benchmark.bases.batch(numbers[:1]))
        name, lines = job.configuration.name, store.lines(job, numbers)
        rows.append(table.make_row(name, lines, truth.statistics(summary), bytes_))
    return rows


def save_sheet(
    path: Path, rows: Sequence[table.Row], jobs: Sequence[Job], benchmark: Benchmark, shown: Sequence[int]
) -> None:
    """Writes the contact sheet of the rows at one scale. `shown` contains the numbers of the prompts to show."""
    columns = [
        (row.name, f"{row.units:.1f} units, {row.seconds:.1f} s", [benchmark.store.path(job, n) for n in shown])
        for row, job in zip(rows, jobs)
    ]
    part = path.with_suffix(".part")
    contact_sheet(columns, [benchmark.studio.world.prompt(number) for number in shown]).save(part, "png")
    part.replace(path)


if __name__ == "__main__":
    main()
