"""Sets up a test environment and runs every check: `python run_tests.py`.

Needs only Python 3.10 or newer. The first start makes a virtual environment in `.venv` and installs pinned packages
into it; later starts use it as it is, without the network, until a pin changes. Arguments go to pytest, which then
runs alone: `python run_tests.py -k schedule`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
STAMP = VENV / "installed.sha256"

REQUIREMENTS = ROOT / "requirements-dev.txt"
REQUIREMENTS_WITHOUT_DEPENDENCIES = ROOT / "requirements-nodeps.txt"
TORCH = "2.13.0"
# Elsewhere than on macOS the default build of torch brings several GB of CUDA libraries.
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"

CHECKS = {
    "ruff check": ["ruff", "check"],
    "ruff format --check": ["ruff", "format", "--check"],
    "mypy lib_demofusion": ["mypy", "lib_demofusion"],
}


class SetUpError(Exception):
    """Set-up cannot go on; the message is for the person who started it."""


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


def answer(code: str) -> str:
    """What a line of Python prints in the virtual environment, or nothing if it cannot run there."""
    try:
        result = subprocess.run(
            [str(PYTHON), "-c", code], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def fingerprint() -> str:
    """A hash of everything that decides what gets installed."""
    pins = [TORCH.encode(), REQUIREMENTS.read_bytes(), REQUIREMENTS_WITHOUT_DEPENDENCIES.read_bytes()]
    return hashlib.sha256(b"\0".join(pins)).hexdigest()


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


def set_up() -> None:
    """Leaves a virtual environment with everything pinned in it; returns at once if that is so already."""
    make_environment()
    wanted = fingerprint()
    if STAMP.is_file() and STAMP.read_text(encoding="utf-8") == wanted:
        return

    install_torch()
    announce(REQUIREMENTS.name)
    if not pip_install("-r", str(REQUIREMENTS)):
        raise SetUpError(f"The packages of {REQUIREMENTS.name} could not be installed.")
    announce(REQUIREMENTS_WITHOUT_DEPENDENCIES.name)
    if not pip_install("--no-deps", "-r", str(REQUIREMENTS_WITHOUT_DEPENDENCIES)):
        raise SetUpError(f"The packages of {REQUIREMENTS_WITHOUT_DEPENDENCIES.name} could not be installed.")
    STAMP.write_text(wanted, encoding="utf-8")


def run_checks() -> list[str]:
    """The names of the checks that failed, after all of them have run."""
    failed = []
    for name, command in CHECKS.items():
        announce(name)
        if run_module(*command) != 0:
            failed.append(name)
    return failed


def main(pytest_arguments: list[str]) -> int:
    """The exit status: zero if every check passed and at least one test ran."""
    try:
        set_up()
    except SetUpError as error:
        print(f"Set-up failed: {error}", file=sys.stderr)
        return 1

    failed = []
    if not pytest_arguments:
        failed = run_checks()
        print(f"== failed: {', '.join(failed)}" if failed else "== all checks before the tests passed")
    announce("pytest")
    status = run_module("pytest", *pytest_arguments, interactive=bool(pytest_arguments))
    return status or int(bool(failed))


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036 (the file can be started with any version)
        sys.exit("Python 3.10 or newer is needed; this is {}.{}.".format(*sys.version_info))
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
