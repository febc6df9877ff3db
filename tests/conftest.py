"""Defines the options of the test run."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# In CI every run uses the same examples, so a new failure is due to the change under test.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts the slowest files first if several processes share the files, so that none begins one as the others end."""
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if {"slow", "browser"} & {mark.name for mark in item.iter_markers()}}
        items.sort(key=lambda item: item.path not in slow)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options that name a real webui."""
    parser.addoption(
        "--webui", default=os.environ.get("SD_WEBUI_DIR"), metavar="DIR", help="an installed webui to start and test in"
    )
    parser.addoption(
        "--checkpoints", metavar="DIR", help="checkpoints of a real layout: the webuis of Forge's family load no others"
    )
    parser.addoption(
        "--webui-url",
        metavar="URL",
        help="a running webui to test in; tests/webui needs the extension in tests/webui/faults there",
    )
