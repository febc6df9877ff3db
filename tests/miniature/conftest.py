"""The stand-in for the webui inside the test process, with the extension loaded into it by its entry points."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

for folder in (ROOT / "trial" / "webui", Path(__file__).resolve().parent):
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
    """The stand-in on a tiny random model."""
    from in_process import Webui
    from tiny import TinyModel

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Webui(tmp_path_factory.mktemp("webui"), TinyModel())
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def paper_as_default(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that name no preset are about the paper's values, save those of the presets themselves."""
    if "webui" in request.fixturenames and request.path.name != "test_presets.py":
        from modules import shared

        from lib_demofusion.host import options

        monkeypatch.setattr(shared.opts, options.DEFAULT_PRESET, "Paper", raising=False)
