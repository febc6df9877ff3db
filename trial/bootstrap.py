"""Makes and fills the virtual environment that the tests and the try command share; standard library only."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")

OLDEST, NEWEST = (3, 10), (3, 13)
"""Versions of Python that every pinned package can be had for."""

TORCH = "2.13.0"
# Elsewhere than on macOS the default build of torch brings several GB of CUDA libraries.
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


class SetUpError(Exception):
    """Set-up cannot go on; the message is for the person who started it."""


@dataclass(frozen=True)
class Layer:
    """A list of pinned packages."""

    file: Path
    with_dependencies: bool = True

    def fingerprint(self) -> str:
        """A hash of everything that decides what gets installed."""
        return hashlib.sha256(TORCH.encode() + b"\0" + self.file.read_bytes()).hexdigest()

    @property
    def stamp(self) -> Path:
        """Holds the fingerprint of what was installed last."""
        return VENV / f"{self.file.stem}.sha256"


TRY = Layer(ROOT / "requirements-try.txt", with_dependencies=False)
TESTS = (TRY, Layer(ROOT / "requirements-dev.txt"), Layer(ROOT / "requirements-nodeps.txt", with_dependencies=False))


def announce(step: str) -> None:
    """Prints the name of the step that begins, ahead of the output of its processes."""
    print(f"== {step}", flush=True)


def run(*arguments: str, interactive: bool = False) -> int:
    """The exit status of a command run in the repository's root."""
    # sys.stdin is None when the caller has closed it.
    stdin = None if interactive and sys.stdin is not None else subprocess.DEVNULL
    return subprocess.run(arguments, cwd=ROOT, stdin=stdin, check=False).returncode


def run_module(*arguments: str, interactive: bool = False) -> int:
    """The exit status of `python -m ...` in the virtual environment."""
    return run(str(PYTHON), "-m", *arguments, interactive=interactive)


def answer(code: str, python: Path = PYTHON) -> str:
    """What a line of Python prints in the virtual environment, or nothing if it cannot run there."""
    try:
        result = subprocess.run(
            [str(python), "-c", code], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def make_environment() -> None:
    """Makes the virtual environment anew unless it works and has the version of Python that runs this."""
    version = "{}.{}".format(*sys.version_info)
    if answer("import pip, sys; print('{}.{}'.format(*sys.version_info))") == version:
        return

    announce(f"virtual environment in {VENV}")
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        raise SetUpError(
            f"{sys.executable} lacks the standard module {' and '.join(missing)}. "
            f"On Debian and Ubuntu: apt install python{version}-venv; elsewhere install a complete Python."
        )
    if run(sys.executable, "-m", "venv", "--clear", str(VENV)) != 0:
        raise SetUpError(f"The virtual environment could not be made in {VENV}.")


def pip_install(*arguments: str) -> bool:
    """Whether pip could install the arguments into the virtual environment."""
    return run_module("pip", "--no-input", "--disable-pip-version-check", "install", *arguments) == 0


def install_torch() -> None:
    """Installs the pinned torch, the build without CUDA where it can be had, unless it is there already."""
    if answer("import importlib.metadata as m; print(m.version('torch'))").partition("+")[0] == TORCH:
        return

    requirement = f"torch=={TORCH}"
    if sys.platform != "darwin":
        announce(f"{requirement}, CPU build")
        if pip_install(requirement, "--index-url", TORCH_CPU_INDEX, "--retries", "0", "--timeout", "10"):
            return
    announce(f"{requirement} from the default index")
    if not pip_install(requirement):
        raise SetUpError(f"{requirement} could not be installed.")


def set_up(*layers: Layer) -> None:
    """Leaves a virtual environment with the layers in it; returns at once, without the network, if that is so."""
    version = sys.version_info[:2]
    if not OLDEST <= version <= NEWEST:
        allowed = "{}.{} to {}.{}".format(*OLDEST, *NEWEST)
        raise SetUpError(f"Python {allowed} is needed; this is {version[0]}.{version[1]} ({sys.executable}).")
    make_environment()
    for layer in layers:
        if layer.stamp.is_file() and layer.stamp.read_text(encoding="utf-8") == layer.fingerprint():
            continue
        install_torch()
        announce(layer.file.name)
        options = () if layer.with_dependencies else ("--no-deps",)
        if not pip_install(*options, "-r", str(layer.file)):
            raise SetUpError(f"The packages of {layer.file.name} could not be installed.")
        layer.stamp.write_text(layer.fingerprint(), encoding="utf-8")


def free_port(first: int, count: int = 100) -> int:
    """The first port from `first` that nobody on this machine listens on."""
    for port in range(first, first + count):
        with socket.socket() as probe:
            # as a server binds: a port that was just given up counts as free
            if sys.platform != "win32":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port from {first} to {first + count - 1}")


def let_threads_sleep() -> None:
    """Makes torch's threads in later processes give up their core while they wait.

    By default they spin, which on two cores that others use as well made a model call ten times as long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def install_chromium() -> None:
    """Installs Debian's Chromium for the browser tests where it is missing and this process may; says so if not."""
    if any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))):
        return
    may_install = hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get")
    announce("chromium" if may_install else "no chromium: the browser tests are skipped (Debian: apt install chromium)")
    if may_install:
        run("apt-get", "update", "-q")
        run("apt-get", "install", "-q", "-y", "--no-install-recommends", "chromium")
