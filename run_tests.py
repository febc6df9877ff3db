"""Sets up a test environment and runs every check: `python run_tests.py`.

Needs only Python 3.10 to 3.13. The first start makes a virtual environment in `.venv` and installs pinned packages
into it; later starts use it as it is, without the network, until a pin changes. The tests run in a process for each
core, up to four. Arguments go to pytest, which then runs alone and in one process:
`python run_tests.py tests/test_fusion.py -k paper`. With `--set-up` nothing is run after the set-up.
"""

from __future__ import annotations

import os
import sys

from trial import bootstrap
from trial.bootstrap import announce, run_module

CHECKS = {
    "ruff check": ["ruff", "check"],
    "ruff format --check": ["ruff", "format", "--check"],
    "mypy lib_demofusion": ["mypy", "lib_demofusion"],
}


MOST_PROCESSES = 4
"""Each holds PyTorch and a small model, about 1 GB."""


def side_by_side() -> list[str]:
    """Pytest's arguments for files of tests side by side, with the cores shared out among them.

    One process where a webui is named: its tests start one for the whole run, and measure times in it.
    """
    if os.environ.get("SD_WEBUI_DIR"):
        return []
    cores = os.cpu_count() or 1
    processes = min(cores, MOST_PROCESSES)
    os.environ.setdefault("OMP_NUM_THREADS", str(cores // processes))
    # in the order of the folders: by number of tests the longest file, which has eight, would begin last
    return ["-n", str(processes), "--dist", "loadfile", "--no-loadscope-reorder"]


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
        bootstrap.set_up(*bootstrap.TESTS)
    except bootstrap.SetUpError as error:
        print(f"Set-up failed: {error}", file=sys.stderr)
        return 1

    if pytest_arguments == ["--set-up"]:
        return 0
    bootstrap.let_threads_sleep()
    failed = []
    if not pytest_arguments:
        bootstrap.install_chromium()
        failed = run_checks()
        print(f"== failed: {', '.join(failed)}" if failed else "== all checks before the tests passed")
    announce("pytest")
    # named, because pytest takes the folder of `--webui DIR` for one of tests and might use that one's settings
    settings = str(bootstrap.ROOT / "pyproject.toml")
    arguments = pytest_arguments or side_by_side()
    status = run_module("pytest", "-c", settings, *arguments, interactive=bool(pytest_arguments))
    return status or int(bool(failed))


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036 (the file can be started with any version)
        sys.exit("Python 3.10 or newer is needed; this is {}.{}.".format(*sys.version_info))
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
