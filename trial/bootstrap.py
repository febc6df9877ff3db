"""Creates and fills the virtual environment that `run_tests.py` and `try_demofusion.py` share.

This module imports only the standard library, because it runs before any package is installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")

OLDEST, NEWEST = (3, 10), (3, 13)
"""The range of Python versions for which every pinned package is available."""

TORCH = "2.13.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CUDA_SIZE = "about 3 GB to download and 7 GB on the disk"
"""Size of the default build of torch on Linux, including the CUDA libraries that pip installs with it."""
SET_UP = "python run_tests.py --set-up"
"""The command that sets up the environment for tests and measurements, and then ends."""
PACKAGES = ("torch", "numpy", "PIL", "yaml", "safetensors", "tqdm", "scipy", "gradio")
"""The import names of the packages that the commands of trial/ and bench/ need in .venv."""


class SetUpError(Exception):
    """The environment cannot be set up. The command prints the message and ends."""


@dataclass(frozen=True)
class Layer:
    """A requirements file with pinned packages."""

    file: Path
    with_dependencies: bool = True
    """Whether pip also installs the dependencies of these packages."""

    def fingerprint(self) -> str:
        """Computes a hash of the version of torch and of the requirements file."""
        return hashlib.sha256(TORCH.encode() + b"\0" + self.file.read_bytes()).hexdigest()

    @property
    def stamp(self) -> Path:
        """The path of the file that stores the fingerprint of this layer's last installation."""
        return VENV / f"{self.file.stem}.sha256"


TRY = Layer(ROOT / "requirements-try.txt", with_dependencies=False)
TESTS = (TRY, Layer(ROOT / "requirements-dev.txt"), Layer(ROOT / "requirements-nodeps.txt", with_dependencies=False))


def announce(step: str) -> None:
    """Prints the name of a step before the step begins."""
    print(f"== {step}", flush=True)


def run(*arguments: str, interactive: bool = False) -> int:
    """Runs a command in the repository's root and returns its exit status.

    An `interactive` command can read from the terminal.
    """
    # sys.stdin is None if the caller has closed it
    stdin = None if interactive and sys.stdin is not None else subprocess.DEVNULL
    return subprocess.run(arguments, cwd=ROOT, stdin=stdin, check=False).returncode


def run_module(*arguments: str, interactive: bool = False) -> int:
    """Runs `python -m ...` in the virtual environment and returns its exit status."""
    return run(str(PYTHON), "-m", *arguments, interactive=interactive)


def answer(code: str, python: Path = PYTHON) -> str:
    """Runs a line of code, by default with the Python of .venv. Returns what it prints, or "" if it fails."""
    try:
        result = subprocess.run(
            [str(python), "-c", code], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def make_environment() -> None:
    """Creates .venv, or replaces it if it lacks pip or has another Python version. Raises SetUpError if this fails."""
    version = "{}.{}".format(*sys.version_info)
    if answer("import pip, sys; print('{}.{}'.format(*sys.version_info))") == version:
        return

    announce(f"virtual environment in {VENV}")
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        raise SetUpError(
            f"{sys.executable} lacks the standard module {' and '.join(missing)}. "
            f"On Debian and Ubuntu: apt install python{version}-venv; on other systems, install a complete Python."
        )
    if run(sys.executable, "-m", "venv", "--clear", str(VENV)) != 0:
        raise SetUpError(f"The virtual environment could not be created in {VENV}. The lines above give the reason.")


def pip_install(*arguments: str) -> bool:
    """Installs the arguments into the virtual environment with pip. Returns whether it succeeded."""
    return run_module("pip", "--no-input", "--disable-pip-version-check", "install", *arguments) == 0


def install_torch() -> None:
    """Installs the pinned version of torch, unless it is installed already.

    Tries the build for CPUs first (except on macOS), and then the default build, which the user must confirm on Linux.
    Raises SetUpError if no build could be installed.
    """
    if answer("import importlib.metadata as m; print(m.version('torch'))").partition("+")[0] == TORCH:
        return

    requirement = f"torch=={TORCH}"
    if sys.platform != "darwin":
        announce(f"{requirement}, CPU build")
        if pip_install(requirement, "--index-url", TORCH_CPU_INDEX, "--retries", "0", "--timeout", "10"):
            return
    if sys.platform.startswith("linux"):
        confirm_cuda()
    announce(f"{requirement} from the default index")
    if not pip_install(requirement):
        raise SetUpError(f"{requirement} could not be installed. The lines above give the reason.")


def confirm_cuda() -> None:
    """Prints the size of the default build of torch, and asks the user whether to install it.

    Raises SetUpError if the user declines. If there is no terminal, the function returns without a question.
    """
    print(f"torch could not be installed from {TORCH_CPU_INDEX}. The default build", end=" ")
    print(f"also installs CUDA libraries: {CUDA_SIZE}.", flush=True)
    if sys.stdin is None or not sys.stdin.isatty():
        return
    if input("Install the default build? [y/N] ").strip().lower() not in ("y", "yes"):
        raise SetUpError(f"torch was not installed. Try again when {TORCH_CPU_INDEX} is reachable.")


def enter_environment(package: str, of_webui: Mapping[str, Sequence[str]]) -> None:
    """Starts a command `python -m package.module` again with the Python of .venv if this Python lacks packages.

    The `__init__.py` of trial/ and bench/ calls this function, because Python imports `__init__.py` before the module
    itself. If .venv does not exist or also lacks the packages, the process ends with a message. `of_webui` maps the
    modules that are for the Python of a webui to the packages that they need. They are not started again: if a package
    is missing, the process ends with a message.
    """
    # Python 3.9 lacks sys.orig_argv; run_tests.py imports this module before it reports that Python 3.9 is too old
    command = getattr(sys, "orig_argv", ())
    if sys.argv[:1] != ["-m"] or "-m" not in command:
        return
    module, *arguments = command[command.index("-m") + 1 :]
    needed = of_webui.get(module, PACKAGES)
    if not module.startswith(f"{package}.") or all(map(importlib.util.find_spec, needed)):
        return
    if module in of_webui:
        python = f"Start it with the Python of your webui, for instance venv/bin/python -m {module}"
        sys.exit(f"python -m {module} needs {' and '.join(needed)}. {python}")
    if PYTHON.is_file() and Path(sys.prefix).resolve() != VENV.resolve():
        sys.exit(run_module(module, *arguments, interactive=True))
    sys.exit(f"python -m {module} needs packages that are not installed. Run `{SET_UP}` first.")


def set_up(*layers: Layer) -> None:
    """Creates the virtual environment if necessary, and installs the layers that are missing in it or have changed.

    If nothing is missing or changed, this needs no network. Raises SetUpError if Python has another version than the
    packages need, or if a step fails.
    """
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
            raise SetUpError(
                f"The packages of {layer.file.name} could not be installed. The lines above give the reason."
            )
        layer.stamp.write_text(layer.fingerprint(), encoding="utf-8")


def free_port(first: int, count: int = 100) -> int:
    """Returns the first port from `first` on that is free on 127.0.0.1.

    Raises OSError if `first` and the next ports, `count` ports in all, are in use.
    """
    for port in range(first, first + count):
        with socket.socket() as probe:
            # servers set this option too; without the option, a port that was released just now would count as in use
            if sys.platform != "win32":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"The ports {first} to {first + count - 1} are in use. Choose another one with --port.")


def let_threads_sleep() -> None:
    """Sets OMP_WAIT_POLICY for processes that start later. Torch's threads then release their core while they wait.

    By default, a waiting thread keeps its core busy. When other processes used the same two cores, this made a model
    call ten times slower.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
