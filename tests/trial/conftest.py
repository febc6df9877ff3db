"""Loads the small model once."""

from __future__ import annotations

import pytest
import torch

from trial.small_model import CHECKPOINT, load, why_missing


@pytest.fixture(scope="session")
def small_model():
    missing = why_missing()
    if missing:
        pytest.skip(missing)
    torch.set_num_threads(2)
    return load(CHECKPOINT)
