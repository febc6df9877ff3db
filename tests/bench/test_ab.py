"""Tests the voting page: it shows pairs without names, saves votes, and gives shares with an interval."""

from __future__ import annotations

import json
import urllib.request

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
    return ab.Poll(ab.pairs_of(ab.pictures(folder), WAYS, 4), folder / "votes.jsonl")


def test_votes_are_counted_and_kept_after_a_restart(folder) -> None:
    for _ in range(3):
        poll = poll_of(folder)  # as after a restart
        pair = poll.draw()
        poll.vote(pair, ab.LEFT if pair[0].way == "Balanced" else ab.RIGHT)
    assert poll_of(folder).draw() is None
    (line,) = ab.results(poll_of(folder).votes)
    assert "Balanced against Hires fix 0.5: 0 votes without difference" in line
    assert "100% (44% to 100%) of 3 other votes for Balanced, p = 0.25" in line


def test_both_orders_are_shown(folder) -> None:
    poll = poll_of(folder)
    assert {poll.draw()[0].way for _ in range(60)} == set(WAYS)


def test_votes_for_neither_are_counted_apart() -> None:
    vote = {"left": "B", "right": "A", "scale": 2, "number": 0}
    votes = [{**vote, "choice": choice} for choice in (ab.LEFT, ab.NEITHER, ab.NEITHER, ab.RIGHT)]
    (line,) = ab.results(votes)
    assert line.startswith("2x: A against B: 2 votes without difference, 50% (")
    assert ab.results(votes[1:2]) == ["2x: A against B: 1 votes without difference"]


def test_a_configuration_without_images_is_reported(folder) -> None:
    with pytest.raises(ValueError, match=r"Paper\. There are Balanced, Hires fix 0\.5"):
        ab.pairs_of(ab.pictures(folder), ("Balanced", "Paper"), 4)
    with pytest.raises(FileNotFoundError, match=r"bench\.quality"):
        ab.pictures(folder / "nothing")


def test_the_page_shows_no_names_and_saves_votes(folder) -> None:
    poll = poll_of(folder)
    blocks = ab.page(poll)
    _, address, _ = blocks.launch(prevent_thread_lock=True, quiet=True, show_api=False)

    def called(number: int) -> dict:
        body = json.dumps({"fn_index": number, "data": [None] * (number < len(ab.BUTTONS)), "session_hash": "one"})
        request = urllib.request.Request(f"{address}run/predict", body.encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    try:
        texts = [json.dumps(called(number)) for number in (len(ab.BUTTONS), 0, 1, 2)]
        assert "3 of 3 done" not in texts[0]
        assert "0 of 3 done" in texts[0]
        assert not any(way in text or way.lower() in text for way in WAYS for text in texts[:3])
    finally:
        blocks.close()
    assert [vote["choice"] for vote in poll.votes] == list(ab.BUTTONS)
    assert "All pairs have a vote" in texts[3]
