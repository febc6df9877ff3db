"""Fixtures: the stand-in for the webui, and a simulated graphics card on which its jobs can run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import stand_in  # noqa: F401 (adds the folders of the stand-in to sys.path)
import torch
from reports import reports_of_test  # noqa: F401 (a fixture of every test)


@pytest.fixture(scope="session")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Loads the stand-in for the webui. A job of the stand-in runs on the CPU or on a simulated card."""
    from card.host import CardWebui
    from card.model import TinyModel
    from in_process import Webui

    threads, model = torch.get_num_threads(), TinyModel()
    torch.set_num_threads(1)
    yield CardWebui(Webui(tmp_path_factory.mktemp("card"), model), model)
    torch.set_num_threads(threads)


@pytest.fixture
def card() -> Any:
    """Returns a simulated NVIDIA card with 24 GiB of memory."""
    from card.simulated import SimulatedCard

    return SimulatedCard()
