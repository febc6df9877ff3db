"""Shows two unnamed results side by side in a browser and counts votes: python -m bench.ab FOLDER [--rows A B].

FOLDER is the output of python -m bench.quality. The page shows images of the same prompt and seed by two configurations
in random order. Votes are saved in FOLDER/votes.jsonl, and the next start continues there. `--results` prints the
shares.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image
from scipy.stats import binomtest

from bench.quality.pictures import image_path

LEFT, RIGHT, NEITHER = "left", "right", "neither"
BUTTONS = {LEFT: "The left image is better", NEITHER: "No difference", RIGHT: "The right image is better"}


class Picture(NamedTuple):
    """One finished image of the benchmark."""

    way: str
    scale: int
    number: int
    prompt: str
    path: Path


Pair = tuple[Picture, Picture]
"""Images of one prompt and seed."""


def pictures(folder: Path) -> list[Picture]:
    """Returns the finished images of a folder. Raises FileNotFoundError if there is none."""
    file = folder / "results.jsonl"
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist. Make images with python -m bench.quality --out {folder}")
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            # an interrupted run may have written only a part of its last line
            continue
        key = entry["configuration"], entry["scale"], entry["number"]
        found[key] = Picture(*key, entry["prompt"], image_path(folder, *key))
    return [picture for picture in found.values() if picture.path.exists()]


def pairs_of(all_: Iterable[Picture], ways: Sequence[str], scale: int) -> list[Pair]:
    """Returns pairs of the first configuration with each of the others.

    Raises ValueError if one of them has no images.
    """
    by_way: dict[str, dict[int, Picture]] = {}
    for picture in all_:
        if picture.scale == scale:
            by_way.setdefault(picture.way, {})[picture.number] = picture
    missing = [way for way in ways if way not in by_way]
    if missing:
        raise ValueError(f"No images at {scale}x by {', '.join(missing)}. There are {', '.join(sorted(by_way))}.")
    first, *others = (by_way[way] for way in ways)
    return [(first[number], other[number]) for other in others for number in first if number in other]


def results(votes: Iterable[dict[str, Any]]) -> list[str]:
    """Returns a line for each pair of configurations: the share of votes for the first, with Wilson's 95 % interval.

    Votes for no difference are counted separately.
    """
    counts: dict[tuple[int, str, str], Counter[str]] = {}
    for vote in votes:
        a, b = sorted((vote["left"], vote["right"]))
        counts.setdefault((vote["scale"], a, b), Counter())[vote.get(vote["choice"], NEITHER)] += 1
    lines = []
    for (scale, a, b), count in sorted(counts.items()):
        line = f"{scale}x: {a} against {b}: {count[NEITHER]} votes without difference"
        if count[a] + count[b]:
            test = binomtest(count[a], count[a] + count[b])
            low, high = test.proportion_ci(method="wilson")
            share = f"{test.statistic:.0%} ({low:.0%} to {high:.0%}) of {test.n} other votes for {a}"
            line += f", {share}, p = {test.pvalue:.2g}"
        lines.append(line)
    return lines


class Poll:
    """The pairs to vote on, and the votes so far."""

    def __init__(self, pairs: Sequence[Pair], file: Path):
        self.pairs, self._file = pairs, file
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        self.votes = [json.loads(line) for line in lines]

    def open(self) -> list[Pair]:
        """Returns the pairs without a vote."""
        done = {(vote["scale"], vote["number"], frozenset((vote["left"], vote["right"]))) for vote in self.votes}
        return [(a, b) for a, b in self.pairs if (a.scale, a.number, frozenset((a.way, b.way))) not in done]

    def draw(self) -> Pair | None:
        """Returns a pair without a vote in random order, or None if there is none."""
        pairs = self.open()
        if not pairs:
            return None
        first, second = random.sample(random.choice(pairs), 2)
        return first, second

    def vote(self, pair: Pair, choice: str) -> None:
        """Saves the vote for a displayed pair (left, right)."""
        left, right = pair
        vote = {"left": left.way, "right": right.way, "scale": left.scale, "number": left.number, "choice": choice}
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(vote) + "\n")
        self.votes.append(vote)


def page(poll: Poll) -> gr.Blocks:
    """Builds the page. It sends the images without the names of their files."""

    def shown() -> tuple[Any, ...]:
        pair = poll.draw()
        if pair is None:
            return None, "All pairs have a vote. Thank you!\n\n" + "\n\n".join(results(poll.votes)), None, None
        done = len(poll.pairs) - len(poll.open())
        images = [Image.open(picture.path).convert("RGB") for picture in pair]
        return pair, f"**{pair[0].prompt}** ({done} of {len(poll.pairs)} done)", *images

    def voted(pair: Pair | None, choice: str) -> tuple[Any, ...]:
        if pair is not None:
            poll.vote(pair, choice)
        return shown()

    with gr.Blocks(title="Which image is better?", analytics_enabled=False) as blocks:
        pair, text = gr.State(), gr.Markdown()
        with gr.Row():
            images = [gr.Image(show_label=False, interactive=False) for _ in range(2)]
        with gr.Row():
            for choice, label in BUTTONS.items():
                click = gr.Button(label).click
                click(lambda pair, choice=choice: voted(pair, choice), [pair], [pair, text, *images])
        blocks.load(shown, None, [pair, text, *images])
    return blocks


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--rows",
        nargs="+",
        default=["Balanced", "Hires fix ESRGAN 0.5"],
        help="configurations; the first is compared with each of the others",
    )
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--port", type=int, default=7940)
    parser.add_argument("--results", action="store_true", help="print the shares of votes and end")
    args = parser.parse_args()
    if len(set(args.rows)) < 2:
        parser.error("--rows needs at least two different configurations")
    try:
        poll = Poll(pairs_of(pictures(args.folder), args.rows, args.scale), args.folder / "votes.jsonl")
    except (FileNotFoundError, ValueError) as problem:
        sys.exit(str(problem))
    if args.results:
        print("\n".join(results(poll.votes)) or "no votes yet")
    else:
        page(poll).launch(server_name="127.0.0.1", server_port=args.port)


if __name__ == "__main__":
    main()
