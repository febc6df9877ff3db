"""Tests `python -m bench.host URL` with a server that imitates the webui's API."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench import host
from lib_demofusion.settings.presets import PRESETS
from trial.sheet import middle

SIDE = 64
"""Side of the base images in pixels."""


class FakeWebui(ThreadingHTTPServer):
    """A server that returns images of a single color. If `drifts` is set, the color is different in every image.

    If `refuses` is the name of a preset, requests with this preset fail with "out of memory". After `stops_after`
    requests for images, all further requests for images fail with status 404.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.scripts = ["demofusion hires", "x/y/z plot"]
        self.upscalers = ["None", "Lanczos"]
        self.checkpoint = "thatXL.safetensors"
        self.requests: list[dict[str, Any]] = []
        self.drifts = False
        self.refuses = ""
        self.stops_after = 1000

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    """Answers the requests of bench.host, like the webui's API."""

    server: FakeWebui

    def do_GET(self) -> None:
        known = {
            "options": {"sd_model_checkpoint": self.server.checkpoint},
            "upscalers": [{"name": name} for name in self.server.upscalers],
            "scripts": {"txt2img": self.server.scripts, "img2img": []},
            "memory": {"ram": {"used": 1}, "cuda": {"system": {"used": 3 << 30}}},
        }
        self._answer(200, known[self.path.removeprefix("/sdapi/v1/")])

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(asked)
        if len(self.server.requests) > self.server.stops_after:
            self._answer(404, {"detail": "Not Found"})
            return
        script = asked.get("alwayson_scripts", {}).get("DemoFusion Hires", {"args": [{}]})["args"][0]
        if self.server.refuses and script.get("preset") == self.server.refuses:
            self._answer(500, {"error": "OutOfMemoryError", "errors": "CUDA out of memory"})
            return
        scale = script.get("scale", asked.get("hr_scale", 1))
        png = io.BytesIO()
        shade = 100 + len(self.server.requests) * self.server.drifts
        Image.new("RGB", (SIDE * scale,) * 2, (shade, 50, 50)).save(png, "PNG")
        note = ', DemoFusion note: "rounded, a little"' if script else ""
        text = f"{asked['prompt']}\nSteps: 20, Model: thatXL{note}, Version: v1.10.1"
        images = [base64.b64encode(png.getvalue()).decode()]
        self._answer(200, {"images": images, "info": json.dumps({"infotexts": [text]})})

    def _answer(self, status: int, body: Any) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: Any) -> None:
        """Does nothing. The base class would print every request."""


@pytest.fixture
def webui(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWebui]:
    """Starts a FakeWebui. Shortens every pause of the command to 0.01 s."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(0.01))
    server = FakeWebui()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def run(webui: FakeWebui, folder: Path, *arguments: str) -> dict[str, list[str]]:
    """Runs the command. Maps the name of each row of its report to the other cells of the row.

    The other cells are: seconds, duration in base images, computed duration in base images, memory, and remarks.
    """
    assert host.main([webui.url, "--size", str(SIDE), "--out", str(folder), *arguments]) == 0
    lines = (folder / "report.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]
    return {name: rest for name, *rest in cells}


def test_every_method_is_measured(webui: FakeWebui, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(webui, tmp_path, "--large")
    assert list(rows)[:2] == ["Base image", "Hires fix 2x"]
    assert set(list(rows)[2:]) == {f"{preset} {scale}x" for preset in PRESETS for scale in (2, 4)}
    assert {cells[3] for cells in rows.values()} == {"3.00 GB"}
    assert {cells[4] for name, cells in rows.items() if name.endswith("4x")} == {'"rounded, a little"'}
    assert float(rows["Base image"][1]) == 1
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "webui v1.10.1, checkpoint thatXL" in report
    assert "made again after all methods: the same, bit for bit." in report
    assert report in capsys.readouterr().out
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        # every method has a column, which is at least 320 pixels wide
        assert sheet.width > len(rows) * 320
    assert not any(asked["save_images"] for asked in webui.requests)


def test_readme_contains_the_computed_durations(webui: FakeWebui, tmp_path: Path) -> None:
    """Compares the computed durations at 2x, rounded to integers, with README's table of presets.

    A row of this table has eight `|`.
    """
    rows = run(webui, tmp_path, "--size", "1024")
    readme = (Path(host.__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    for preset in PRESETS:
        (line,) = [line for line in readme.splitlines() if line.startswith(f"| {preset} |") and line.count("|") == 8]
        assert round(float(rows[f"{preset} 2x"][2])) == round(float(line.split("|")[3]))


def test_a_failed_method_is_reported_and_the_others_are_measured(webui: FakeWebui, tmp_path: Path) -> None:
    webui.refuses, webui.drifts = "Paper", True
    rows = run(webui, tmp_path)
    assert rows["Paper 2x"] == ["", "", rows["Paper 2x"][2], "3.00 GB", "txt2img: 500 CUDA out of memory"]
    assert rows["Balanced 2x"][0]
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    # the color changes by one level with each request, and the second and the last image are compared
    assert f"after all methods: differs by up to {len(webui.requests) - 2} of 255." in report


def test_memory_is_reported_even_if_a_request_ends_between_two_readings(
    webui: FakeWebui, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host.Webui, "watch", lambda self: None)
    assert run(webui, tmp_path)["Base image"][3] == "3.00 GB"


def test_the_report_is_written_if_the_webui_stops_answering(webui: FakeWebui, tmp_path: Path) -> None:
    webui.stops_after = 6
    rows = run(webui, tmp_path)
    assert rows["Base image"][0]
    assert rows["Hires fix 2x"][-1] == f"{webui.url} has no API. Start the webui with --api."
    assert "made again after all methods: not compared." in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_hires_fix_runs_with_an_upscaler_that_the_webui_has(webui: FakeWebui, tmp_path: Path) -> None:
    webui.upscalers = ["None"]
    assert run(webui, tmp_path)["Hires fix 2x"][0]
    assert {asked["hr_upscaler"] for asked in webui.requests if "hr_upscaler" in asked} == {"Latent"}
    assert "Hires fix: Latent, 20 steps" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_a_webui_without_the_extension_is_reported(webui: FakeWebui, capsys: pytest.CaptureFixture[str]) -> None:
    webui.scripts = ["x/y/z plot"]
    assert host.main([webui.url]) == 1
    assert "has no DemoFusion Hires. Install the extension" in capsys.readouterr().err


def test_a_missing_webui_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert host.main(["http://127.0.0.1:9"]) == 1
    assert "No webui answers at http://127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.parametrize(("checkpoint", "side"), [("thatXL.safetensors", 1024), ("v1-5-pruned.safetensors", 512)])
def test_the_size_of_the_base_image_depends_on_the_checkpoint(
    webui: FakeWebui, tmp_path: Path, checkpoint: str, side: int
) -> None:
    webui.checkpoint = checkpoint
    run(webui, tmp_path, "--size", "0")
    assert {asked["width"] for asked in webui.requests} == {side}


@pytest.mark.parametrize("size", [(64, 64), (400, 100), (1000, 1000)])
def test_a_1_to_1_part_is_at_most_two_thirds_of_the_image(size: tuple[int, int]) -> None:
    """Below each image, the sheet shows a part of it at full resolution, of at most 320x320 pixels."""
    part = middle(Image.new("RGB", size, "red"), 320)
    assert part.size == tuple(min(length * 2 // 3, 320) for length in size)
    assert part.getcolors() == [(part.width * part.height, (255, 0, 0))]
