"""Tests the voting page: it shows pairs without names, saves votes, and gives shares with an interval."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from http.server import ThreadingHTTPServer

import pytest
from PIL import Image

from bench import ab

WAYS = ("Balanced", "Hires fix 0.5")


@pytest.fixture
def folder(tmp_path):
    lines = []
    for way, colour in zip(WAYS, ("red", "blue")):
        for number in range(3):
            path = tmp_path / "pictures" / "4x" / way.lower().replace(" ", "-") / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), colour).save(path)
            lines.append({"configuration": way, "scale": 4, "number": number, "prompt": f"prompt {number}"})
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"configuration": "Balan'
    (tmp_path / "results.jsonl").write_text(text, encoding="utf-8")
    return tmp_path


def poll_of(folder) -> ab.Poll:
    return ab.Poll(ab.duels(ab.pictures(folder), WAYS, 4), folder / "votes.jsonl")


def is_red(path) -> bool:
    return Image.open(path).getpixel((0, 0)) == (255, 0, 0)


def test_votes_are_counted_and_kept_after_a_restart(folder) -> None:
    for _ in range(3):
        poll = poll_of(folder)  # as after a restart
        pair = poll.ask()
        assert not {"way", "left", "right"} & set(pair)
        side = ab.LEFT if is_red(poll.picture(pair["token"], ab.LEFT)) else ab.RIGHT
        assert poll.vote(pair["token"], side)
    assert poll_of(folder).ask() is None
    assert ab.results(poll_of(folder).votes) == [
        "4x: Balanced against Hires fix 0.5: 100% (44% to 100%) of 3 votes, 0 without difference"
    ]


def test_both_orders_are_shown(folder) -> None:
    poll = poll_of(folder)
    tokens = [poll.ask()["token"] for _ in range(60)]
    assert {is_red(poll.picture(token, ab.LEFT)) for token in tokens} == {True, False}


def test_a_vote_counts_once_and_only_for_the_displayed_pair(folder) -> None:
    poll = poll_of(folder)
    token = poll.ask()["token"]
    assert not poll.vote(token, "best")
    assert not poll.vote("unknown", ab.LEFT)
    assert poll.vote(token, ab.NEITHER)
    assert not poll.vote(token, ab.LEFT)
    assert len(poll_of(folder).votes) == 1


@pytest.mark.parametrize(
    ("wins", "count", "low", "high"), [(5, 10, 0.2366, 0.7634), (0, 10, 0.0, 0.2775), (81, 263, 0.2553, 0.3662)]
)
def test_wilsons_interval(wins, count, low, high) -> None:
    """The last case is Newcombe's (1998)."""
    assert ab.wilson(wins, count) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_draws_count_half() -> None:
    vote = {"left": "B", "right": "A", "scale": 2, "number": 0}
    votes = [{**vote, "choice": choice} for choice in (ab.LEFT, ab.NEITHER, ab.NEITHER, ab.RIGHT)]
    assert ab.results(votes)[0].startswith("2x: A against B: 50% ")


def test_a_configuration_without_images_is_reported(folder) -> None:
    with pytest.raises(ValueError, match=r"Paper; there are Balanced, Hires fix 0\.5"):
        ab.duels(ab.pictures(folder), ("Balanced", "Paper"), 4)
    with pytest.raises(FileNotFoundError, match=r"bench\.quality"):
        ab.pictures(folder / "nothing")


def test_the_page_is_served_and_accepts_votes(folder) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), ab.handler(poll_of(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"

    def get(path: str, data: bytes | None = None) -> bytes:
        with urllib.request.urlopen(address + path, data) as answer:
            return answer.read()

    try:
        page = get("/").decode()
        assert not any(way in page for way in WAYS)
        pair = json.loads(get("/pair"))["pair"]
        assert get(f"/picture?token={pair['token']}&side=left")[:4] == b"\x89PNG"
        get("/vote", f"token={pair['token']}&choice=left".encode())
        assert json.loads(get("/pair"))["pair"]["done"] == 1
        for path, data in (("/picture?token=x&side=left", None), ("/etc", None), ("/vote", b"token=x")):
            with pytest.raises(urllib.error.HTTPError) as problem:
                get(path, data)
            problem.value.close()
    finally:
        server.shutdown()
        server.server_close()
