"""Provides the stand-in for the webui in the test process, its page on a server, and a browser for that page.

The stand-in is in trial/webui. It replaces the webui's package `modules`, and loads the extension in the same way as
the webui does.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import stand_in  # noqa: F401 (adds the folders of the following imports to sys.path)
import torch
from reports import Reports, reports_of_test  # noqa: F401 (a fixture of every test)

FOLDER = Path(__file__).resolve().parent

from browser import NO_ANIMATIONS, find_chromium, launched, listening, show  # noqa: E402


@pytest.fixture(scope="session")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Returns the stand-in with a tiny random model. Torch runs on one thread from then on until the last test ends."""
    from in_process import Webui
    from tiny import TinyModel

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Webui(tmp_path_factory.mktemp("webui"), TinyModel())
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Starts a server with the page of the stand-in. Returns the page's address and the path of the server's error log.

    The log is in the server's data folder.
    """
    folder = tmp_path_factory.mktemp("data")
    # each test process looks for a free port in a range of its own
    port = 7870 + 100 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    # every model call takes 0.02 s longer, so that the tests can observe the stages
    command = [sys.executable, "-u", str(FOLDER / "serve_tiny.py"), str(port), str(folder), "0.02"]
    with (
        (folder / "errors.txt").open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as server,
    ):
        assert server.stdout is not None
        found = next(filter(None, (re.search(r"page is at (\S+)", line) for line in server.stdout)), None)
        if found is None:
            pytest.fail((folder / "errors.txt").read_text())
        yield found.group(1).rstrip("."), folder / "errors.txt"
        server.terminate()


@pytest.fixture(scope="session")
def address(served: tuple[str, Path]) -> str:
    """Returns the address of the stand-in's page."""
    return served[0]


@pytest.fixture
def console(served: tuple[str, Path], reported: Reports) -> Iterator[None]:
    """Collects the errors and DemoFusion's messages that the server prints. A test fails if it does not expect one.

    After the test, the fixture deletes the files that the server has stored, such as presets, measured times and the
    last infotext.
    """
    printed = served[1]
    before = printed.stat().st_size
    yield
    for file in printed.parent.iterdir():
        if file.is_file() and file != printed:
            file.unlink()
    for line in printed.read_bytes()[before:].decode(errors="replace").splitlines():
        if line.startswith(("*** ", "Traceback", "DemoFusion")):
            reported.see_console(line)


@pytest.fixture(scope="session")
def window() -> Iterator[Any]:
    """Starts a browser, and returns the browser page that all tests use.

    If each test had a browser page of its own, the browser would compile gradio's scripts for every test. This takes
    longer than most tests. The page has no animations, because with animations the tests take three times as long.
    """
    program = find_chromium()
    if program is None:
        reason = "no Chromium was found; on Debian: apt-get install chromium"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with launched(program) as browser:
        page = browser.new_page()
        page.add_init_script(NO_ANIMATIONS)
        yield page


@pytest.fixture
def blank(window: Any) -> Iterator[Any]:
    """Returns the browser page, which is empty. A JavaScript error during the test fails the test."""
    problems: list[str] = []
    with listening(window, "pageerror", lambda error: problems.append(str(error))):
        yield window
        window.goto("about:blank")
    assert problems == []


@pytest.fixture
def page(blank: Any, address: str, console: None, reported: Reports) -> Iterator[Any]:
    """Loads the page of the stand-in. If the page shows a failure that the test does not expect, the test fails."""
    show(blank, address)
    yield blank
    for tab in ("txt2img", "img2img"):
        reported.see_page(blank.text_content(f"#html_info_{tab}.prose") or "")
