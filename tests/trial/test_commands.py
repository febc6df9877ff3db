"""Tests the start of the commands: without installed packages, with output to a log, and with questions to the user."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import run_tests
from trial import bootstrap

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "bench/README.md", "trial/README.md", "docs/cards.md")
OWN = {"bench.card", "bench.host"}
"""The commands that run with the Python of a webui, without the environment in .venv."""
TEXT = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
COMMANDS = sorted(set(re.findall(r"python -m ((?:bench|trial)[a-z._]*[a-z])", TEXT)))
"""The commands in the documentation, such as bench.quality."""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies the programs of bench/ and trial/ to a folder without a virtual environment."""
    folder = tmp_path_factory.mktemp("bare")
    for path in [*ROOT.glob("bench/**/*.py"), *ROOT.glob("trial/*.py"), *ROOT.glob("trial/collage/*.py")]:
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return folder


def started(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in a folder. The option -S hides all installed packages."""
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_explains_the_setup_if_nothing_is_installed(bare: Path, name: str) -> None:
    path = ROOT / name.replace(".", "/")
    assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
    done = started(bare, "-m", name)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    advice = "with the Python of your webui" if name in OWN else "Run `python run_tests.py --set-up` first"
    assert advice in done.stderr


def test_trial_can_be_imported_without_orig_argv(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.9 lacks sys.orig_argv. `python run_tests.py` imports trial before it reports that 3.9 is too old."""
    monkeypatch.delattr(sys, "orig_argv")
    bootstrap.enter_environment("trial", {})


def test_a_command_uses_an_existing_environment(bare: Path, tmp_path: Path) -> None:
    """The environment's Python is replaced by a script that prints its arguments and exits with status 7."""
    python = bare / bootstrap.PYTHON.relative_to(bootstrap.ROOT)
    if os.name == "nt":
        pytest.skip("on Windows, a shell script cannot replace python.exe")
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "inside: $*"; exit 7\n')
    python.chmod(0o755)
    try:
        done = started(bare, "-m", "bench.quality", "--count", "3")
    finally:
        python.unlink()
    assert (done.returncode, done.stdout) == (7, "inside: -m bench.quality --count 3\n")


class Terminal(io.StringIO):
    """A standard input that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("typed", "attempts"), [("y\n", 2), ("\n", 1), (None, 2)])
def test_the_user_is_asked_before_the_build_with_cuda_is_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: str | None, attempts: int
) -> None:
    """The first attempt, torch's build for CPUs, fails. The second attempt is the larger build with CUDA.

    `typed` is the answer of the user. If it is None, the input is not a terminal, so there is no question.
    """
    tried: list[tuple[str, ...]] = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "stdin", io.StringIO() if typed is None else Terminal(typed))
    monkeypatch.setattr(bootstrap, "answer", lambda *_: "")
    monkeypatch.setattr(bootstrap, "pip_install", lambda *arguments: tried.append(arguments) or len(tried) == 2)
    if attempts == 1:
        with pytest.raises(bootstrap.SetUpError, match="torch was not installed"):
            bootstrap.install_torch()
    else:
        bootstrap.install_torch()
    assert len(tried) == attempts
    assert bootstrap.CUDA_SIZE in capsys.readouterr().out


@pytest.mark.parametrize("wanted", [True, False])
def test_chromium_is_announced_before_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wanted: bool
) -> None:
    """If `wanted` is not set, the environment variable NO_CHROMIUM is set, so Chromium must not be installed."""
    said: list[str] = []
    monkeypatch.setattr(run_tests.shutil, "which", lambda name: name if name == "apt-get" else None)
    monkeypatch.setattr(run_tests.os, "geteuid", lambda: 0, raising=False)
    monkeypatch.setattr(run_tests, "run", lambda *_: said.append(capsys.readouterr().out) or 0)
    if not wanted:
        monkeypatch.setenv(run_tests.NO_CHROMIUM, "1")
    run_tests.install_chromium()
    assert bool(said) == wanted
    if wanted:
        assert run_tests.CHROMIUM_SIZE in said[0]


@pytest.mark.parametrize(("module", "status"), [("platform", 0), ("no_such_module", 1)])
def test_a_failed_check_is_printed_and_makes_the_run_fail(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], module: str, status: int
) -> None:
    monkeypatch.setattr(bootstrap, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(bootstrap, "set_up", lambda *_: None)
    monkeypatch.setattr(run_tests, "install_chromium", lambda: None)
    monkeypatch.setattr(bootstrap, "let_threads_sleep", lambda: None)
    monkeypatch.setattr(run_tests, "run_pytest", lambda arguments: 0)
    monkeypatch.setattr(run_tests, "CHECKS", {"one": ["platform"], "other": [module]})
    assert run_tests.main([]) == status
    said = capfd.readouterr().out
    assert ("No module named no_such_module" in said) == bool(status)
    assert ("== failed: other\n" in said) == bool(status)


@pytest.mark.parametrize("page", ["run_tests.py", "CONTRIBUTING.md"])
def test_the_tests_in_the_examples_of_a_page_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    examples = re.findall(r"python run_tests\.py (tests\S*\.py) -k (\w+)", text)
    assert examples
    for file, word in examples:
        assert re.search(rf"^def test_\w*{word}", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


SERVED = """
import sys, types, try_demofusion

def serve(*_):
    from tqdm import tqdm
    with tqdm(total=2, position=1, leave=False) as bar:
        bar.update()

sys.modules["launch"] = types.SimpleNamespace(prepare=lambda *_: None, serve=serve)
sys.exit(try_demofusion.work(try_demofusion.parse([])))
"""
"""Code that runs try_demofusion.py with a replaced server, which only shows a progress bar."""


def test_the_page_writes_no_cursor_codes_into_a_log() -> None:
    done = subprocess.run([sys.executable, "-c", SERVED], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"\r|\x1b", done.stderr)
