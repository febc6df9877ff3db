"""Tests how the detector finds subjects in its probabilities, and how it crops and resizes images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trial.collage import detector
from trial.collage.content import captions


def test_peaks_are_local_maxima_above_the_threshold():
    centres = torch.zeros(16, 16)
    # 0.8 is next to a higher value, and 0.3 is below the threshold
    centres[3, 4], centres[3, 5], centres[10, 12], centres[0, 15] = 0.9, 0.8, 0.6, 0.3
    assert detector.peaks(centres) == [(3, 4), (10, 12)]
    assert detector.peaks(torch.zeros(16, 16)) == []


@pytest.mark.parametrize(("size", "count"), [((128, 128), 1), ((256, 256), 9), ((512, 512), 49), ((128, 192), 2)])
def test_crops_cover_the_whole_image(size, count):
    """A crop has 128x128 pixels. The crops are views of the image, so adding 1 to them changes the image."""
    image = np.zeros((*size, 3), np.float32)
    parts = detector.crops(image)
    assert len(parts) == count
    for part in parts:
        assert part.shape == (128, 128, 3)
        part += 1.0
    assert image.min() >= 1.0


def test_an_image_is_resized_to_a_shorter_side_of_128_pixels():
    image = np.random.default_rng(0).random((512, 768, 3)).astype(np.float32)
    assert detector.prepared(image).shape == (128, 192, 3)


def test_the_bundled_detector_has_an_output_for_every_subject_and_ground():
    subjects, grounds = captions()
    centres, names, ground_logits = detector.trained()(torch.zeros(1, 3, 128, 128))
    assert centres.shape == (1, 1, 16, 16)
    assert names.shape == (1, len(subjects), 16, 16)
    assert ground_logits.shape == (1, len(grounds))
    # a gray image shows no subject
    assert detector.read([np.full((256, 256, 3), 128, np.uint8)])[0].subjects == ()
