"""Provides a real webui to the tests in this folder.

The tests start a webui (--webui DIR) or use a webui that is already running (--webui-url URL).
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoints
from PIL import Image
from webui import hosts

from lib_demofusion.settings.presets import DEFAULT_PRESET

ROOT = Path(__file__).parents[2]
FAULTS = Path(__file__).parent / "faults"
THIN = Path(__file__).parent / "thin_text_encoders"
TITLE = "DemoFusion Hires"
DEFAULTS = {"demofusion_default_preset": "Paper"}
"""DemoFusion's settings, unless a test changes them. A request without a preset uses the preset Paper."""
START_SECONDS = 600
"""Maximum time in which the webui must start."""
REQUEST = {
    "prompt": "a red circle",
    "negative_prompt": "blur",
    "seed": 1,
    "steps": 6,
    "width": 128,
    "height": 128,
    "sampler_name": "Euler a",
    "cfg_scale": 5,
}


@dataclass
class Result:
    """The images and infotexts of one request."""

    images: list[Image.Image]
    infotexts: list[str]

    @classmethod
    def of(cls, answer: dict[str, Any]) -> Result:
        """Decodes the images and infotexts in an answer of the API."""
        return cls([decoded(text) for text in answer["images"]], json.loads(answer["info"])["infotexts"])

    @property
    def digests(self) -> list[str]:
        """The SHA-256 digests of the images' pixels. Two images with the same digest are identical."""
        return [hashlib.sha256(image.tobytes()).hexdigest() for image in self.images]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return [image.size for image in self.images]


class Webui:
    """The API of a running webui."""

    def __init__(self, url: str):
        self.url = url

    def call(self, path: str, body: dict[str, Any] | None = None, under: str = "sdapi/v1") -> Any:
        """Sends a POST request with `body`, or a GET request without it, and returns the decoded JSON.

        `under` is the part of the URL between the address of the webui and `path`.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.url}/{under}/{path}", data, {"Content-Type": "application/json"}, method="POST" if data else "GET"
        )
        with urllib.request.urlopen(request, timeout=900) as response:
            return json.load(response)

    def plot_args(self, *axes: tuple[str, str, Any]) -> list[Any]:
        """Returns the arguments of an X/Y/Z plot over fields of this extension.

        Each axis is (label, text, list). For a field with choices, the values are in the list and the text is empty.
        For any other field, the values are in the text and the list is None. The plot returns its grid and also the
        image of each cell.
        """
        plot = next(entry for entry in self.call("script-info") if entry["name"] == "x/y/z plot")
        args = [control.get("value") for control in plot["args"]]
        for first, (label, typed, chosen) in zip((0, 3), axes):
            args[first : first + 2] = [plot["args"][0]["choices"].index(f"[DemoFusion] {label}"), typed]
            args[first + 2] = args[first + 2] if chosen is None else chosen
        args[6] = 0
        args[next(n for n, control in enumerate(plot["args"]) if control["label"] == "Include Sub Images")] = True
        return args

    def generate(
        self, demofusion: Any = None, path: str = "txt2img", more_scripts: Any = None, **request: Any
    ) -> Result:
        """Generates images. Fields of `request` replace those of REQUEST.

        `demofusion` is the argument of this extension: a dict of fields, a list of values by position, or None to send
        no argument. `more_scripts` are further entries of `alwayson_scripts`.
        """
        body = {
            **REQUEST,
            **request,
            "alwayson_scripts": {**request.get("alwayson_scripts", {}), **(more_scripts or {})},
        }
        if demofusion is not None:
            args = demofusion if isinstance(demofusion, list) else [demofusion]
            body["alwayson_scripts"][TITLE] = {"args": args}
        return Result.of(self.call(path, body))


def facts_or_skip(webui: Webui, name: str) -> Any:
    """Requests facts from a test extension in `faults/`. Skips the test if the webui does not have the route `name`.

    Most of these routes exist only in webuis of Forge's family.
    """
    try:
        return webui.call(name, under="demofusion-test")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != HTTPStatus.NOT_FOUND:
            raise
        pytest.skip(f"the test extensions have no route {name} in this webui")


def interrupted(webui: Webui, run: Callable[[], Result], at: str = "DemoFusion") -> Result:
    """Runs a job, interrupts it when the text next to the progress bar contains `at`, and returns its result."""
    done: list[Result] = []
    thread = threading.Thread(target=lambda: done.append(run()))
    thread.start()
    while thread.is_alive() and at not in str(webui.call("progress").get("textinfo")):
        time.sleep(0.1)
    webui.call("interrupt", {})
    thread.join()
    return done[0]


def progress_of_stages(webui: Webui, run: Callable[[], Result]) -> tuple[Result, list[dict[str, Any]]]:
    """Runs a job. Returns its result, and the API's answers about the progress while a stage ran."""
    done: list[Result] = []
    answers: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: done.append(run()))
    thread.start()
    while thread.is_alive():
        answer = webui.call("progress")
        # the webui may still report the text of a job that has finished
        if answer["state"]["job_count"] and "DemoFusion" in str(answer.get("textinfo")):
            answers.append(answer)
        time.sleep(0.1)
    thread.join()
    return done[0], answers


def decoded(text: str) -> Image.Image:
    """Decodes an image from the API."""
    return Image.open(io.BytesIO(base64.b64decode(text.rpartition(",")[2])))


def png(image: Image.Image) -> str:
    """Encodes an image for the API."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="session")
def webui(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webui]:
    """Starts a webui with this extension and the test extensions, or connects to a webui that is already running."""
    url, folder = request.config.getoption("--webui-url"), request.config.getoption("--webui")
    if url:
        server = Webui(url)
        present = server.call("options")
        server.call("options", DEFAULTS)
        yield server
        server.call("options", {name: present.get(name, DEFAULT_PRESET) for name in DEFAULTS})
        return
    if not folder:
        pytest.skip("no real webui: name one with --webui DIR or SD_WEBUI_DIR")
    checkpoints = request.config.getoption("--checkpoints")
    with started(Path(folder), tmp_path_factory.mktemp("webui"), checkpoints=checkpoints) as server:
        yield server


@contextmanager
def started(
    folder: Path, data: Path, *flags: str, checkpoints: str | None = None, second_copy: str = ""
) -> Iterator[Webui]:
    """Starts the webui in `folder` and stops it at the end.

    `data` must be an empty folder, which becomes the webui's data directory. `flags` are further arguments for the
    webui. `checkpoints` is a folder of checkpoints. Without it, the webui gets the checkpoints of
    `tiny_checkpoints.py`, which webuis of Forge's family cannot load. If `second_copy` is given, a second copy of the
    extension is installed in a folder of this name.
    """
    (data / "extensions").mkdir()
    for name in filter(None, ("sd-webui-demofusion-hires", second_copy)):
        _install(ROOT, data / "extensions" / name)
    _install(FAULTS, data / "extensions" / "demofusion-test-faults")
    if hosts.find(folder) in (hosts.NEO, hosts.FORGE):
        _install(THIN, data / "extensions" / "thin-text-encoders")
    # with the webui's default for emphasis, the embedding of a prompt depends on the other prompts of its batch
    settings: dict[str, Any] = {"emphasis": "No norm", "live_previews_enable": False, "samples_save": False, **DEFAULTS}
    # by default, Forge Neo skips the last layer of the text encoder
    settings["CLIP_stop_at_last_layers"] = 1
    settings |= hosts.settings_of(hosts.find(folder), folder)
    if checkpoints:
        settings["sd_model_checkpoint"] = sorted(Path(checkpoints).glob("*.safetensors"))[0].name
    elif tiny_checkpoints.derive(folder / "models" / "Stable-diffusion", data / "checkpoints"):
        settings["sd_model_checkpoint"] = f"{tiny_checkpoints.SD1}.safetensors"
    hosts.prepare(folder, data)
    (data / "config.json").write_text(json.dumps(settings))
    with _Server(folder, data, flags, Path(checkpoints or data / "checkpoints")) as server:
        yield server


def _install(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(".git", ".venv*", "tests" if source == ROOT else ""))


class _Server:
    """Starts a webui on a free port and stops it at the end."""

    def __init__(self, folder: Path, data: Path, flags: Sequence[str], checkpoints: Path):
        self.folder, self.data, self.flags, self.checkpoints = folder, data, flags, checkpoints

    def __enter__(self) -> Webui:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        folder, python = self.folder, self.folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
        arguments = hosts.find(folder).arguments(port, self.data, self.checkpoints, folder / "models")
        command = [str(python), "launch.py", *arguments, *self.flags]
        self.log = (self.data / "log.txt").open("w")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=self.log, stderr=self.log)
        server = Webui(f"http://127.0.0.1:{port}")
        try:
            self._wait(server)
        except BaseException:
            # Python does not call __exit__ if __enter__ raises an error
            self.__exit__()
            raise
        return server

    def _wait(self, server: Webui) -> None:
        """Waits until the log reports that the webui has started, and then until the webui answers.

        A request that arrives while the webui adds its API would end the webui. Therefore, the first request is sent
        only after the report in the log.
        """
        log = self.data / "log.txt"
        for _ in range(START_SECONDS):
            if self.process.poll() is not None:
                pytest.fail(f"the webui ended at its start, see {log}")
            time.sleep(1)
            if not any(sign in log.read_text(errors="replace") for sign in ("Startup time", "Uvicorn running")):
                continue
            try:
                server.call("options")
            except (urllib.error.URLError, ConnectionError):
                continue
            return
        pytest.fail(f"the webui did not answer within {START_SECONDS} seconds")

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.wait(30)
        self.log.close()
