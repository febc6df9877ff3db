"""Tests that rendering shows the same scene at every resolution and zoom, and that the detector reads it correctly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trial.detect import Label, classify, count_subjects
from trial.scenes import Scene, Subject, all_labels, random_scene, render, scene_caption

LABELS = all_labels()


def shrink(image: np.ndarray, factor: int) -> np.ndarray:
    height, width = image.shape[0] // factor, image.shape[1] // factor
    return image.reshape(height, factor, width, factor, 3).mean((1, 3))


@pytest.mark.parametrize("index", range(0, 64, 9))
def test_small_picture_is_the_mean_of_the_large_one(index):
    scene = random_scene(np.random.default_rng(index), LABELS[index])
    error = np.abs(render(scene, 128, 128) - shrink(render(scene, 512, 512), 4))
    assert error.mean() < 0.002
    assert np.quantile(error, 0.99) < 0.02


@pytest.mark.parametrize("aspect", [1.0, 0.8, 1.5])
def test_crop_equals_crop_of_the_whole(aspect):
    scene = random_scene(np.random.default_rng(3), LABELS[20], aspect)
    width, height = (round(64 * side) * 4 for side in scene.size)
    whole = render(scene, width, height)
    part = render(scene, width // 4, height // 4, (0.25, 0.5, 0.5, 0.75))
    np.testing.assert_allclose(part, whole[height // 2 : height * 3 // 4, width // 4 : width // 2], atol=2e-3)


@pytest.mark.parametrize("zoom", [1, 2, 4, 8])
def test_every_zoom_reveals_detail_of_more_than_a_grey_level(zoom):
    scene = random_scene(np.random.default_rng(5), LABELS[0])
    box = (0, 0, 1 / zoom, 1 / zoom)
    coarse = np.repeat(np.repeat(render(scene, 16, 16, box), 8, 0), 8, 1)
    assert np.std(render(scene, 128, 128, box) - coarse) > 1 / 255


def test_rendering_is_deterministic_and_captioned():
    scene = random_scene(np.random.default_rng(1), LABELS[0])
    assert (render(scene, 64, 64) == render(scene, 64, 64)).all()
    assert scene_caption(scene) == "a red circle on green ground"


def test_unknown_shape_is_named_in_the_error():
    scene = Scene("green", (Subject("blob", "red", 0.5, 0.5, 0.2),), 0)
    with pytest.raises(ValueError, match="blob"):
        render(scene, 16, 16)


@pytest.mark.parametrize("index", range(64))
def test_detector_reads_every_label(index):
    size = (128, 256, 512)[index % 3]
    scene = random_scene(np.random.default_rng((9, index)), LABELS[index])
    image = render(scene, size, size)
    assert count_subjects(image) == 1
    assert classify(image) == Label(*LABELS[index])


@pytest.mark.parametrize("size", [128, 512, 1024])
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_detector_counts(size, count):
    spots = (("circle", 0.25, 0.25), ("cross", 0.75, 0.3), ("triangle", 0.5, 0.75))
    subjects = tuple(Subject(shape, "yellow", x, y, 0.16) for shape, x, y in spots)
    scene = replace(random_scene(np.random.default_rng(2), LABELS[0]), subjects=subjects[:count])
    image = render(scene, size, size)
    assert count_subjects(image) == count
    assert count_subjects((image * 255).astype(np.uint8)) == count


def test_detector_counts_sixteen_small_subjects():
    subjects = tuple(
        Subject("triangle", "white", 0.125 + 0.25 * (i % 4), 0.125 + 0.25 * (i // 4), 0.055) for i in range(16)
    )
    scene = Scene("blue", subjects, 4)
    assert count_subjects(render(scene, 512, 512)) == 16
