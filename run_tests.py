"""Sets up a test environment and runs every check: `python run_tests.py`.

You need only Python 3.10 to 3.13. The first run creates a virtual environment in `.venv` and installs pinned packages.
Later runs use the same environment without network access, until the version of a pinned package changes.

Without arguments, the tests run in parallel. The number of processes is the number of cores plus one, but at most four.
With arguments, the program only runs pytest with these arguments, in one process. For example:
`python run_tests.py tests/test_fusion.py -k paper`. With `--set-up`, the program only sets up the environment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from trial import bootstrap
from trial.bootstrap import announce, run, run_module

CHECKS = {
    "ruff check": ["ruff", "check"],
    "ruff format --check": ["ruff", "format", "--check"],
    "mypy lib_demofusion": ["mypy", "lib_demofusion"],
}
MOST_PROCESSES = 4
"""Maximum number of test processes. Each process needs about 1 GB of memory for PyTorch and a small model."""
NO_CHROMIUM = "DEMOFUSION_NO_CHROMIUM"
"""Name of an environment variable. If the variable is set, Chromium is not installed."""
CHROMIUM_SIZE = "about 300 MB on the disk"


def parallel_arguments() -> list[str]:
    """Returns the arguments with which pytest runs test files in parallel.

    Also sets OMP_NUM_THREADS, so that the processes share the cores. There is one process more than there are cores,
    because the tests in a browser wait most of the time.

    Returns no arguments if SD_WEBUI_DIR is set. This variable enables the tests that share one running webui and
    measure times, so all tests must run in one process.
    """
    if os.environ.get("SD_WEBUI_DIR"):
        return []
    cores = os.cpu_count() or 1
    processes = min(cores + 1, MOST_PROCESSES)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    # tests/conftest.py sorts the files so that slow files start first. Without --no-loadscope-reorder, files with few
    # tests would start last, and the slowest file has only eight tests.
    return ["-n", str(processes), "--dist", "loadfile", "--no-loadscope-reorder"]


def start_checks() -> dict[str, subprocess.Popen[str]]:
    """Starts the linters and the type checker, which run at the same time as the tests."""
    return {
        name: subprocess.Popen(
            [str(bootstrap.PYTHON), "-m", *command],
            cwd=bootstrap.ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, command in CHECKS.items()
    }


def finish_checks(checks: dict[str, subprocess.Popen[str]]) -> list[str]:
    """Waits for the end of each check and prints its output. Returns the names of the failed checks."""
    failed = []
    for name, check in checks.items():
        output, _ = check.communicate()
        announce(name)
        print(output, end="", flush=True)
        if check.returncode != 0:
            failed.append(name)
    return failed


def run_pytest(pytest_arguments: list[str]) -> int:
    """Runs pytest and returns its exit status. Without arguments, all tests run in parallel."""
    announce("pytest")
    # without this option, pytest might use a configuration file in the folder of `--webui DIR`
    settings = str(bootstrap.ROOT / "pyproject.toml")
    arguments = pytest_arguments or parallel_arguments()
    return run_module("pytest", "-c", settings, *arguments, interactive=bool(pytest_arguments))


def install_chromium() -> None:
    """Installs Debian's Chromium for the browser tests, unless a Chromium is installed or NO_CHROMIUM is set.

    Needs apt-get and a process that runs as root. Prints a note before the installation. Also prints a note if the
    browser tests will be skipped.
    """
    if any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))):
        return
    may_install = hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get")
    if not may_install:
        announce("no Chromium: the browser tests are skipped (Debian: apt install chromium)")
    elif os.environ.get(NO_CHROMIUM):
        announce("no Chromium: the browser tests are skipped")
    else:
        announce(f"Chromium for the browser tests is installed with apt-get, {CHROMIUM_SIZE}")
        print(f"To run the tests without it, set {NO_CHROMIUM}=1.", flush=True)
        run("apt-get", "update", "-q")
        run("apt-get", "install", "-q", "-y", "--no-install-recommends", "chromium")


def main(pytest_arguments: list[str]) -> int:
    """Sets up the environment, then runs the checks and tests, or only what the arguments request.

    Returns the exit status. It is 0 if every step succeeded, and at least one test ran unless `--set-up` was given.
    """
    try:
        bootstrap.set_up(*bootstrap.TESTS)
    except bootstrap.SetUpError as error:
        print(f"The setup failed: {error}", file=sys.stderr)
        return 1

    if pytest_arguments == ["--set-up"]:
        return 0
    bootstrap.let_threads_sleep()
    if pytest_arguments:
        return run_pytest(pytest_arguments)
    install_chromium()
    checks = start_checks()
    status = run_pytest([])
    failed = finish_checks(checks)
    print(f"== failed: {', '.join(failed)}" if failed else "== all checks besides the tests passed")
    return status or int(bool(failed))


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036 (any Python version can start this file)
        sys.exit("Python 3.10 or newer is needed; this is {}.{}.".format(*sys.version_info))
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
