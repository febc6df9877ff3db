"""The stand-in for the webui on a played card."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

TESTS = Path(__file__).resolve().parents[1]

for folder in (TESTS.parent / "trial" / "webui", TESTS / "miniature"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

with warnings.catch_warnings():
    # gradio 3.41.2 and its web framework are older than the packages below them
    warnings.simplefilter("ignore")
    import gradio  # noqa: F401
    import k_diffusion.external
    import k_diffusion.sampling  # noqa: F401


@pytest.fixture(scope="session")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Jobs on any device."""
    from card.host import CardWebui
    from card.model import TinyModel
    from in_process import Webui

    threads, model = torch.get_num_threads(), TinyModel()
    torch.set_num_threads(1)
    yield CardWebui(Webui(tmp_path_factory.mktemp("card"), model), model)
    torch.set_num_threads(threads)


@pytest.fixture
def card() -> Any:
    """An NVIDIA card with 24 GiB."""
    from card.played import PlayedCard

    return PlayedCard()
