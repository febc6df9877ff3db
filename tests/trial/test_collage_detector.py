"""Tests the detector's targets, how it reads its maps, and how it cuts images into crops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch.nn.functional import one_hot

from trial.collage import detector, train_detector
from trial.collage.content import Content, captions, cutout, ground
from trial.collage.scenes import extent


@pytest.fixture(scope="module")
def content() -> Content:
    """Returns a red disc and a blue square on two plain grounds."""
    subjects = []
    for name, draw, colour in (("a disc", "ellipse", "red"), ("a square", "rectangle", "blue")):
        picture = Image.new("RGBA", (280, 280))
        getattr(ImageDraw.Draw(picture), draw)((5, 5, 275, 275), fill=colour)
        subjects.append(cutout(name, picture))
    grounds = [ground(name, Image.new("RGB", (512, 512), name), 500) for name in ("gray", "white")]
    return Content(tuple(subjects), tuple(grounds))


@pytest.fixture(scope="module")
def examples(content):
    return train_detector.make_set(content, 1, 40)


def test_every_centre_has_a_name_and_the_position_of_its_subject(content, examples):
    shown = 0
    for index in range(40):
        _, scene, box = train_detector.example(content, np.random.default_rng((1, index)))
        assert examples.grounds[index] == scene.ground
        cells = np.argwhere(examples.centres[index] >= 1.0)
        assert (examples.subjects[index][tuple(cells.T)] >= 0).all()
        for placed in scene.subjects:
            x, y = ((centre - low) / (high - low) for centre, low, high in zip((placed.x, placed.y), box, box[2:]))
            size = max(extent(content, placed)) / (box[2] - box[0])
            if size > train_detector.LARGEST_IN_CROP or not (0 < x < 1 and 0 < y < 1):
                continue
            row, column = int(y * train_detector.CELLS), int(x * train_detector.CELLS)
            if examples.centres[index][row, column] >= 1.0:
                shown += 1
                assert examples.subjects[index][row, column] == placed.subject
    assert shown > 20


def test_close_ups_of_a_part_show_no_subject(content):
    """At four times the size, no crop contains a whole subject of normal size."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        _, scene, box = train_detector.example(content, rng)
        zoom = 1.0 / (box[2] - box[0])
        if zoom == pytest.approx(4.0):
            assert scene.subjects[0].size * zoom > train_detector.LARGEST_IN_CROP


def test_crowds_do_not_overlap_much(content):
    counts = set()
    for seed in range(30):
        scene = train_detector.crowded_scene(content, np.random.default_rng(seed))
        counts.add(len(scene.subjects))
        for i, a in enumerate(scene.subjects):
            assert not any(train_detector._overlap(content, a, b) for b in scene.subjects[:i])
    assert {0, 1, 2, 3} <= counts


def test_the_loss_is_small_for_right_answers_and_large_for_wrong_ones(examples):
    centres, subjects, grounds = (
        torch.from_numpy(part[:8]) for part in (examples.centres, examples.subjects, examples.grounds)
    )

    class Answer(torch.nn.Module):
        """A network with a fixed output."""

        def __init__(self, sign: float):
            super().__init__()
            self.sign = sign

        def forward(self, x):
            names = one_hot(subjects.clamp(min=0), 2).permute(0, 3, 1, 2)
            there = (centres >= 1.0).float() * 2 - 1
            return self.sign * 9 * there[:, None], self.sign * 9.0 * names, self.sign * 9.0 * one_hot(grounds, 2)

    x = torch.zeros(8, 3, 128, 128)
    right, wrong = (train_detector.loss_of(Answer(sign), x, centres, subjects, grounds) for sign in (1.0, -1.0))
    assert right < 0.05
    assert wrong > 100 * right


def test_peaks_are_local_maxima_above_the_threshold():
    centres = torch.zeros(16, 16)
    centres[3, 4], centres[3, 5], centres[10, 12], centres[0, 15] = 0.9, 0.8, 0.6, 0.3
    assert detector.peaks(centres) == [(3, 4), (10, 12)]
    assert detector.peaks(torch.zeros(16, 16)) == []


@pytest.mark.parametrize(("size", "count"), [((128, 128), 1), ((256, 256), 9), ((512, 512), 49), ((128, 192), 2)])
def test_crops_cover_a_picture_and_overlap_by_half(size, count):
    image = np.zeros((*size, 3), np.float32)
    parts = detector.crops(image)
    assert len(parts) == count
    for part in parts:
        assert part.shape == (128, 128, 3)
        part += 1.0
    assert image.min() >= 1.0


def test_pictures_of_any_size_are_reduced_to_one(content):
    image = np.random.default_rng(0).random((512, 768, 3)).astype(np.float32)
    assert detector.prepared(image).shape == (128, 192, 3)


@pytest.mark.skipif(not detector.WEIGHTS.exists(), reason="no trained detector")
def test_the_committed_detector_fits_the_list_of_subjects():
    subjects, grounds = captions()
    centres, names, ground_logits = detector.trained()(torch.zeros(1, 3, 128, 128))
    assert centres.shape == (1, 1, 16, 16)
    assert names.shape == (1, len(subjects), 16, 16)
    assert ground_logits.shape == (1, len(grounds))
    assert detector.count_subjects(np.full((256, 256, 3), 128, np.uint8)) == 0
