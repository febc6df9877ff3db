"""The small model, loaded once."""

from __future__ import annotations

import pytest
import torch

from trial.small_model import CHECKPOINT, load


@pytest.fixture(scope="session")
def small_model():
    if not CHECKPOINT.exists():
        pytest.skip("no trained checkpoint")
    torch.set_num_threads(2)
    return load(CHECKPOINT)
