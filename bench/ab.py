"""Shows two unnamed results side by side in a browser and counts votes: python -m bench.ab FOLDER [--rows A B].

FOLDER is the output of python -m bench.quality. The page shows images of the same prompt and seed by two configurations
in random order. You vote with a click or with the keys 1, 2, and 0 for no difference. Votes are saved in
FOLDER/votes.jsonl, and the next start continues there. `--results` prints the shares.
"""

from __future__ import annotations

import argparse
import html
import json
import math
import secrets
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

LEFT, RIGHT, NEITHER = "left", "right", "neither"
Z = 1.959964
"""Quantile for a 95 % interval."""
LARGEST_BODY = 10_000
PAGE = Path(__file__).with_name("ab.html")


@dataclass(frozen=True)
class Picture:
    """One finished image of the benchmark."""

    way: str
    scale: int
    number: int
    prompt: str
    path: Path


@dataclass(frozen=True)
class Duel:
    """Two images of one prompt and seed, in the order in which they are shown."""

    left: Picture
    right: Picture


def pictures(folder: Path) -> list[Picture]:
    """Returns the finished images of a folder. Raises FileNotFoundError if there is none."""
    file = folder / "results.jsonl"
    if not file.exists():
        raise FileNotFoundError(f"{file} is not there; make pictures with python -m bench.quality --out {folder}")
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            # the end of an interrupted run
            continue
        way = entry["configuration"]
        name = way.lower().replace(" ", "-").replace("/", "-").replace(",", "-")
        path = folder / "pictures" / f"{entry['scale']}x" / name / f"{entry['number']:03d}.png"
        if path.exists():
            key = (way, entry["scale"], entry["number"])
            found[key] = Picture(*key, entry["prompt"], path)
    return list(found.values())


def duels(all_: Iterable[Picture], ways: Sequence[str], scale: int) -> list[tuple[Picture, Picture]]:
    """Returns pairs of two configurations in the order of the prompts.

    Raises ValueError if one of them has no images.
    """
    by_way: dict[str, dict[int, Picture]] = {}
    for picture in all_:
        if picture.scale == scale:
            by_way.setdefault(picture.way, {})[picture.number] = picture
    missing = [way for way in ways if way not in by_way]
    if missing:
        raise ValueError(f"no pictures at {scale}x by {', '.join(missing)}; there are {', '.join(sorted(by_way))}")
    first, *others = ways
    pairs = [(by_way[first][n], by_way[o][n]) for o in others for n in by_way[first] if n in by_way[o]]
    return sorted(pairs, key=lambda pair: (pair[0].number, pair[1].way))


def wilson(wins: float, count: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share by Wilson's score (1927)."""
    if count == 0:
        return 0.0, 1.0
    share, z2 = wins / count, Z * Z
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def results(votes: Iterable[dict[str, Any]]) -> list[str]:
    """Returns a line for each pair of configurations with the share of votes for the first. A draw counts half."""
    totals: dict[tuple[str, str, int], list[int]] = {}
    for vote in votes:
        winner = {LEFT: vote["left"], RIGHT: vote["right"]}.get(vote["choice"])
        a, b = sorted((vote["left"], vote["right"]))
        counts = totals.setdefault((a, b, vote["scale"]), [0, 0, 0])
        counts[0 if winner == a else 1 if winner == b else 2] += 1
    lines = []
    for (a, b, scale), (first, second, even) in sorted(totals.items()):
        count = first + second + even
        low, high = wilson(first + even / 2, count)
        share = (first + even / 2) / count
        interval = f"{share:.0%} ({low:.0%} to {high:.0%}) of {count} votes"
        lines.append(f"{scale}x: {a} against {b}: {interval}, {even} without difference")
    return lines


class Poll:
    """The pairs that are still to be shown, and the votes so far."""

    def __init__(self, pairs: Sequence[tuple[Picture, Picture]], file: Path):
        self._pairs = list(pairs)
        self._file = file
        self._shown: dict[str, Duel] = {}
        self.votes = [json.loads(line) for line in self._lines()]

    def _lines(self) -> list[str]:
        return self._file.read_text(encoding="utf-8").splitlines() if self._file.exists() else []

    def left(self) -> list[tuple[Picture, Picture]]:
        """Returns the pairs without a vote."""
        done = {(vote["scale"], vote["number"], *sorted((vote["left"], vote["right"]))) for vote in self.votes}
        return [p for p in self._pairs if (p[0].scale, p[0].number, *sorted((p[0].way, p[1].way))) not in done]

    def ask(self) -> dict[str, Any] | None:
        """Returns a pair under a random name, or None if all pairs have a vote."""
        left = self.left()
        if not left:
            return None
        first, second = secrets.choice(left)
        token = secrets.token_urlsafe(8)
        self._shown[token] = Duel(*((first, second) if secrets.randbelow(2) else (second, first)))
        done = len(self._pairs) - len(left)
        return {"token": token, "prompt": first.prompt, "done": done, "of": len(self._pairs)}

    def picture(self, token: str, side: str) -> Path | None:
        """Returns the file of one side of the displayed pair."""
        duel = self._shown.get(token)
        return {LEFT: duel.left.path, RIGHT: duel.right.path}.get(side) if duel is not None else None

    def vote(self, token: str, choice: str) -> bool:
        """Saves a vote. Returns False if the pair is not displayed (any more) or the choice does not exist."""
        if choice not in (LEFT, RIGHT, NEITHER) or token not in self._shown:
            return False
        duel = self._shown.pop(token)
        vote = {"left": duel.left.way, "right": duel.right.way, "scale": duel.left.scale, "number": duel.left.number}
        vote["choice"] = choice
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(vote) + "\n")
        self.votes.append(vote)
        return True


def handler(poll: Poll) -> type[BaseHTTPRequestHandler]:
    """Returns a class that answers the page's requests for a poll."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlparse(self.path)
            if url.path == "/":
                self._send(PAGE.read_bytes(), "text/html; charset=utf-8")
            elif url.path == "/pair":
                pair = poll.ask()
                text = [html.escape(line) for line in results(poll.votes)] if pair is None else []
                self._send(json.dumps({"pair": pair, "results": text}).encode(), "application/json")
            elif url.path == "/picture":
                query = parse_qs(url.query)
                path = poll.picture(query.get("token", [""])[0], query.get("side", [""])[0])
                if path is None:
                    self.send_error(HTTPStatus.NOT_FOUND)
                else:
                    self._send(path.read_bytes(), "image/png")
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            fields = parse_qs(self.rfile.read(min(length, LARGEST_BODY)).decode("utf-8", "replace"))
            if urlparse(self.path).path == "/vote" and poll.vote(
                fields.get("token", [""])[0], fields.get("choice", [""])[0]
            ):
                self._send(b"{}", "application/json")
            else:
                self.send_error(HTTPStatus.BAD_REQUEST)

        def _send(self, data: bytes, kind: str) -> None:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            """Does not log requests."""

    return Handler


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", nargs="+", default=["Balanced", "Hires fix ESRGAN 0.5"], help="first against others")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--port", type=int, default=7940)
    parser.add_argument("--results", action="store_true", help="print the shares and end")
    args = parser.parse_args()
    if len(set(args.rows)) < 2:
        parser.error("--rows needs at least two different ways")
    try:
        pairs = duels(pictures(args.folder), args.rows, args.scale)
    except (FileNotFoundError, ValueError) as problem:
        sys.exit(str(problem))
    poll = Poll(pairs, args.folder / "votes.jsonl")
    if args.results:
        print("\n".join(results(poll.votes)) or "no votes yet")
        return
    print(f"{len(poll.left())} of {len(pairs)} pairs left; open http://127.0.0.1:{args.port} and end with Ctrl+C")
    try:
        ThreadingHTTPServer(("127.0.0.1", args.port), handler(poll)).serve_forever()
    except KeyboardInterrupt:
        print("\n".join(results(poll.votes)))


if __name__ == "__main__":
    main()
