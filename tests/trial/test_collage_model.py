"""Tests the committed model of the collages: its size, its layout, and that its images follow the prompt.

The limits are below the results for 64 prompts in trial/README.md. They detect a broken file or loader.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml

from trial import packing
from trial.collage import detector
from trial.collage.export import CLIP_FOLDER
from trial.collage.measure import judge, sample
from trial.collage.model import UNET
from trial.export import configuration
from trial.sampling import GUIDANCE
from trial.small_model import COLLAGE_CHECKPOINT, load

pytestmark = pytest.mark.skipif(
    not (COLLAGE_CHECKPOINT.exists() and detector.WEIGHTS.exists()), reason="no trained model of the collages"
)


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(2)
    return load(COLLAGE_CHECKPOINT)


def test_the_file_is_at_most_twelve_megabytes_and_its_weights_at_most_twelve_million(model):
    assert COLLAGE_CHECKPOINT.stat().st_size <= 12_000_000
    assert sum(parameter.numel() for parameter in model.parameters()) <= 12_000_000


def test_the_yaml_is_that_of_the_sizes(model):
    saved = yaml.safe_load(COLLAGE_CHECKPOINT.with_suffix(".yaml").read_text(encoding="utf-8"))
    assert saved == configuration(UNET, CLIP_FOLDER)


def test_unpacked_it_has_the_names_of_the_layout():
    tensors = packing.load(COLLAGE_CHECKPOINT)
    for name in (
        "model.diffusion_model.input_blocks.0.0.weight",
        "first_stage_model.decoder.conv_out.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
        "alphas_cumprod",
    ):
        assert name in tensors
    assert tensors[packing.WORDS].shape == (49408, 32)
    assert not any(name.endswith(packing.SCALE) for name in tensors)


def test_samples_follow_the_prompt(model):
    labels, images = sample(model, 16, 1, 12, GUIDANCE)
    assert images.shape == (16, 128, 128, 3)
    assert np.isfinite(images).all()
    found = judge(labels, images)
    assert found["ground"] >= 0.7
    # by chance it would be 1 of 24
    assert found["subject"] >= 0.2
