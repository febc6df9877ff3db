"""Sets up a test environment and runs every check: `python run_tests.py`.

You need only Python 3.10 to 3.13. The first run creates a virtual environment in `.venv` and installs pinned packages.
Later runs reuse it without network access until a pinned version changes. The tests run in one process per core, up to
four. If you pass arguments, only pytest runs, in one process, and receives them:
`python run_tests.py tests/test_fusion.py -k paper`. With `--set-up`, only the environment is set up.
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
"""Maximum number of test processes. Each needs about 1 GB for PyTorch and a small model."""


def side_by_side() -> list[str]:
    """Returns pytest's arguments for running test files in parallel. Divides the cores among the processes.

    Uses one process if SD_WEBUI_DIR is set, because its tests share one running webui and measure times.
    """
    if os.environ.get("SD_WEBUI_DIR"):
        return []
    cores = os.cpu_count() or 1
    processes = min(cores, MOST_PROCESSES)
    os.environ.setdefault("OMP_NUM_THREADS", str(cores // processes))
    # keeps the order of tests/conftest.py: sorted by number of tests, the slowest file (eight tests) would start last
    return ["-n", str(processes), "--dist", "loadfile", "--no-loadscope-reorder"]


def run_checks() -> list[str]:
    """Runs all checks and returns the names of those that failed."""
    failed = []
    for name, command in CHECKS.items():
        announce(name)
        if run_module(*command) != 0:
            failed.append(name)
    return failed


def main(pytest_arguments: list[str]) -> int:
    """Runs the checks and tests. Returns the exit status, 0 if every check passed and at least one test ran."""
    try:
        bootstrap.set_up(*bootstrap.TESTS)
    except bootstrap.SetUpError as error:
        print(f"The setup failed: {error}", file=sys.stderr)
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
    # explicit, because pytest treats the folder of `--webui DIR` as tests and might use its configuration
    settings = str(bootstrap.ROOT / "pyproject.toml")
    arguments = pytest_arguments or side_by_side()
    status = run_module("pytest", "-c", settings, *arguments, interactive=bool(pytest_arguments))
    return status or int(bool(failed))


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036 (any Python version can start this file)
        sys.exit("Python 3.10 or newer is needed; this is {}.{}.".format(*sys.version_info))
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
