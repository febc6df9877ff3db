"""Defines command-line options for pytest, the order of the tests, and Hypothesis' profile for CI."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# In CI, Hypothesis uses the same examples in every run. If a test fails that passed before, the tested change is the
# cause, and not a new random example.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Moves files with tests that have the mark `slow` or `browser` to the front, if several processes run the tests.

    Otherwise, a process might start a slow file last, when the other processes have almost finished.
    """
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if {"slow", "browser"} & {mark.name for mark in item.iter_markers()}}
        items.sort(key=lambda item: item.path not in slow)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options for tests in a real webui."""
    parser.addoption(
        "--webui", default=os.environ.get("SD_WEBUI_DIR"), metavar="DIR", help="an installed webui to start and test in"
    )
    parser.addoption(
        "--checkpoints",
        metavar="DIR",
        help="a folder of checkpoints with the layout of real models; Forge, reForge and Forge Neo cannot load the "
        "tiny checkpoints that the tests use otherwise",
    )
    parser.addoption(
        "--webui-url",
        metavar="URL",
        help="a running webui to test in; for tests/webui, install the extension tests/webui/faults there first",
    )
