"""Adds defects to clean renderings, and tests that each metric detects its own defect and ignores the others.

The comments give the values that were measured. Each limit is between the value with the defect and without it.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from bench.quality import metrics, worlds
from bench.quality.features import Frechet, Network, Summary, Truth, crops, frechet, gaussian
from bench.quality.pictures import downscale
from bench.quality.worlds import COLLAGES, WORLDS, Sight
from tests.bench.planted import BASE, CONTENT, SIDE, rendered, scene, with_extras
from trial.collage.detector import crops_with_subject

ROOT = Path(__file__).resolve().parents[2]

LINES = [128, 192, 256, 320, 384]
"""The rows and columns before which the tests add seams."""
NUMBERS = (0, 3, 6, 9, 17, 21)
"""The numbers of the scenes."""


@pytest.fixture(scope="module")
def clean() -> list[np.ndarray]:
    """Returns renderings (SIDE, SIDE, 3) of the scenes, without defects."""
    return [rendered(scene(number)) for number in NUMBERS]


@pytest.fixture(scope="module")
def bases(clean) -> list[np.ndarray]:
    """Returns the base images (BASE, BASE, 3) of the scenes: the renderings, reduced in size."""
    return [downscale(picture, (BASE, BASE)) for picture in clean]


def with_seam(picture: np.ndarray) -> np.ndarray:
    """Makes each area between LINES lighter or darker by 0.03, at random, so that there are seams at LINES."""
    rng = np.random.default_rng(1)
    edges = [0, *LINES, SIDE]
    picture = picture.copy()
    for top, bottom in pairwise(edges):
        for left, right in pairwise(edges):
            picture[top:bottom, left:right] += rng.choice((-0.03, 0.03))
    return picture.clip(0, 1)


def with_grid(picture: np.ndarray, cell: int = 8) -> np.ndarray:
    """Makes the pixels on both sides of each cell border more similar, as a decoder does.

    `cell` is the width of a cell in pixels.
    """
    picture = picture.copy()
    for border in range(cell, SIDE, cell):
        for two in (picture[border - 1 : border + 1], picture[:, border - 1 : border + 1].swapaxes(0, 1)):
            two += 0.2 * (two.mean(axis=0) - two)
    return picture


def with_comb(picture: np.ndarray, factor: int) -> np.ndarray:
    """Adds dilated grain, the pattern that appears if the dilated views disagree.

    There are `factor` x `factor` dilated views. Each view has a random offset, which is added to all of its cells.
    """
    offsets = np.random.default_rng(2).normal(0, 0.02, (factor, factor))
    cells = SIDE // 8
    grid = np.tile(offsets, (cells // factor, cells // factor))
    return (picture + np.kron(grid, np.ones((8, 8)))[..., None]).astype(np.float32).clip(0, 1)


def blurred(picture: np.ndarray, std: float = 2.0) -> np.ndarray:
    """Blurs an image with a Gaussian. `std` is the Gaussian's standard deviation in pixels."""
    return ndimage.gaussian_filter(picture, (std, std, 0))


def noisy(picture: np.ndarray, std: float = 0.03) -> np.ndarray:
    """Adds white noise to an image. `std` is the noise's standard deviation on the scale 0..1."""
    return (picture + np.random.default_rng(3).normal(0, std, picture.shape)).astype(np.float32).clip(0, 1)


def smeared(picture: np.ndarray) -> np.ndarray:
    """Adds noise that is blurred along one diagonal, like the streaks that a denoiser can leave."""
    grain = np.random.default_rng(4).normal(0, 1, (SIDE, SIDE))
    streaks = sum(np.roll(grain, (i, i), (0, 1)) for i in range(12)) / 12**0.5
    return (picture + 0.05 * streaks[..., None]).astype(np.float32).clip(0, 1)


def test_clean_images_have_no_foreign_spot(clean, bases) -> None:
    assert [metrics.excess_blobs(picture, base) for picture, base in zip(clean, bases)] == [0] * len(clean)


@pytest.mark.parametrize("extras", [1, 2])
def test_each_extra_subject_counts_as_one_foreign_spot(bases, extras: int) -> None:
    pictures = [with_extras(number, extras) for number in NUMBERS]
    assert [metrics.excess_blobs(picture, base) for picture, base in zip(pictures, bases)] == [extras] * len(bases)


@pytest.fixture(scope="module")
def sampled() -> list[np.ndarray]:
    """Reads 64 images, which the small trained model has made, from a contact sheet."""
    sheet = np.asarray(Image.open(ROOT / "pictures" / "collage-64.jpg"), np.float32) / 255
    return [sheet[top : top + 128, left : left + 128] for top in range(0, 1024, 128) for left in range(0, 1024, 128)]


def test_the_detector_finds_and_counts_subjects(sampled) -> None:
    """Each image should show one subject, and four images that are joined to a square should show four.

    Some images of the model show no subject or more than one, so the limits are lower.
    """
    sights = [COLLAGES.sight(image, 0) for image in sampled]
    # measured: 97 % of the images
    assert np.mean([sight.subjects == 1 for sight in sights]) > 0.85
    assert all(0 <= x <= 1 for sight in sights for x in sight.place or ())
    fours = [
        np.concatenate([np.concatenate(sampled[i : i + 2], 1), np.concatenate(sampled[i + 2 : i + 4], 1)])
        for i in range(0, 64, 4)
    ]
    # measured: 3.06 subjects, and a whole subject in 0.6 of the crops
    assert np.mean([COLLAGES.sight(four, 0).subjects for four in fours]) > 3
    assert np.mean([crops_with_subject(four) for four in fours]) > 0.4
    empty = np.full((128, 128, 3), 0.5, np.float32)
    assert COLLAGES.sight(empty, 0) == Sight(0, False, COLLAGES.sight(empty, 0).right_ground, None)


def test_a_subject_is_right_only_if_the_prompt_names_it(sampled) -> None:
    """Image i of the sheet was made for a prompt with subject i. The model may have drawn another subject.

    `numbers` are the numbers of the prompts that name subject i, and `wrong` is the number of another prompt.
    """
    for subject in range(6):
        numbers = [number for number in range(240) if COLLAGES.label(number)[0] == subject]
        wrong = next(number for number in range(240) if COLLAGES.label(number)[0] != subject)
        sights = [COLLAGES.sight(sampled[subject], number) for number in numbers]
        assert len({sight.right_subject for sight in sights}) == 1
        if sights[0].right_subject:
            assert any(sight.right_ground for sight in sights)
            assert not COLLAGES.sight(sampled[subject], wrong).right_subject


def test_color_drift_and_new_detail_do_not_count_as_foreign_spots(clean, bases) -> None:
    for picture, base in zip(clean, bases):
        drifted = (0.95 * picture + np.array([0.04, 0.0, -0.03], np.float32)).clip(0, 1)
        assert metrics.excess_blobs(drifted, base) == 0
        assert metrics.excess_blobs(noisy(picture, 0.08), base) == 0


def test_structure_ignores_new_detail_and_decreases_with_added_subjects(clean, bases) -> None:
    for number, picture, base in zip(NUMBERS, clean, bases):
        assert metrics.structure_psnr(picture, base) == metrics.PSNR_LIMIT
        changed = with_extras(number, 2)
        error = ((downscale(changed, (BASE, BASE)) - base) ** 2).mean()
        assert metrics.structure_psnr(changed, base) == pytest.approx(-10 * np.log10(error))
        # measured: at most 26.7 dB with two added subjects, and at least 42.4 dB with noise
        assert metrics.structure_psnr(changed, base) < 30
        assert metrics.structure_psnr(noisy(picture), base) > 40


def test_white_noise_has_the_same_power_at_all_frequencies() -> None:
    picture = np.repeat(np.random.default_rng(0).normal(0.5, 0.1, (SIDE, SIDE, 1)), 3, 2)
    values = metrics.log_spectrum(picture)
    # measured: a difference of 0.08. The first ring is left out, because `power` subtracts the mean
    assert np.abs(values[1:] - values[1:].mean()).max() < 0.15
    # all frequencies fill a square with a side of 1. The frequencies up to HIGH fill a circle with the area pi / 16
    assert metrics.high_frequency_ratio(picture) == pytest.approx(1 - np.pi / 16, abs=0.01)


def test_blur_reduces_and_noise_increases_the_share_of_high_frequencies(clean) -> None:
    for picture in clean:
        share = metrics.high_frequency_ratio(picture)
        # measured: blur divides the share by more than 1000, and noise multiplies it by at least 9.7
        assert metrics.high_frequency_ratio(blurred(picture)) < share / 3
        assert metrics.high_frequency_ratio(noisy(picture, 0.08)) > 3 * share


def test_the_distances_between_sets_grow_more_with_defects_than_with_other_scenes(monkeypatch) -> None:
    """Compares sets of images with true renderings of the same prompts.

    The sets are other renderings of these prompts, the same renderings with a defect, and the same renderings repeated.
    A repeated image shows a rendering four times at half its size, so it has four subjects.
    """
    monkeypatch.setattr(worlds, "installed", lambda: CONTENT)
    numbers = range(16)

    def statistics(pictures: list[np.ndarray]) -> dict[str, float]:
        found = truth.statistics(Summary(pictures, network))
        return {name: value(np.arange(len(pictures))) for name, value in found.items()}

    network = Network()
    truth = Truth(Summary([COLLAGES.true_rendering(number, 256, 0) for number in numbers], network))
    others = [COLLAGES.true_rendering(number, 256, 1) for number in numbers]
    clean = statistics(others)
    defects = {
        "blur": [blurred(picture, 1.0) for picture in others],
        "noise": [noisy(picture, 0.02) for picture in others],
    }
    for name, pictures in defects.items():
        found = statistics(pictures)
        assert found["spectrum"] > 2 * clean["spectrum"], name
        assert found["frechet_crops"] > 2 * clean["frechet_crops"], name
    tiled = [np.tile(picture[::2, ::2], (2, 2, 1)) for picture in others]
    assert statistics(tiled)["frechet_whole"] > 2 * clean["frechet_whole"]


def test_the_frechet_distance_of_gaussians() -> None:
    """With diagonal covariances, the distance is the sum of (m1 - m2)^2 + (s1 - s2)^2 over the dimensions.

    m1 and m2 are the means of the two Gaussians, and s1 and s2 are their standard deviations.
    """
    a = np.array([1.0, 2.0]), np.diag([4.0, 1.0])
    b = np.array([0.0, 4.0]), np.diag([1.0, 9.0])
    assert frechet(a, b) == pytest.approx(1 + 4 + 1 + 4)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_whitened_features_of_the_true_renderings_have_unit_variance() -> None:
    features = np.random.default_rng(0).normal(2, 3, (500, 30)) @ np.random.default_rng(1).normal(0, 1, (30, 30))
    found = Frechet(features[:, None])
    white = found.whitened(features[:, None])
    mean, covariance = gaussian(white)
    np.testing.assert_allclose(mean, 0, atol=1e-9)
    # `gaussian` divides by the number of samples, 500, but `Frechet` scales the variance that is divided by 499
    np.testing.assert_allclose(covariance * 500 / 499, np.eye(20), atol=1e-6)
    assert found.distance(white) == pytest.approx(0, abs=1e-6)


def test_crops_are_at_the_same_places_in_every_set(clean) -> None:
    np.testing.assert_array_equal(crops(clean[0], 5) + 1, crops(clean[0] + 1, 5))
    assert not np.array_equal(crops(clean[0], 5), crops(clean[0], 6))


def test_seams_are_detected(clean) -> None:
    levels = [metrics.seam_gradient_ratio(picture, LINES, LINES) for picture in clean]
    # the ratio of an image without seams is 1. Measured: means of 1.00 in clean images, 1.00 beside the seams, and
    # 0.97 in images with other defects; with seams, the ratio is at least 12 times as high
    assert np.mean(levels) == pytest.approx(1, abs=0.1)
    seamed = [metrics.seam_gradient_ratio(with_seam(picture), LINES, LINES) for picture in clean]
    assert all(after > 1.3 * before for before, after in zip(levels, seamed))
    beside = [metrics.seam_gradient_ratio(with_seam(picture), [160, 224], [160, 224]) for picture in clean]
    assert np.mean(beside) == pytest.approx(1, abs=0.1)
    defects = [metrics.seam_gradient_ratio(noisy(blurred(picture)), LINES, LINES) for picture in clean]
    assert np.mean(defects) == pytest.approx(1, abs=0.1)


def test_a_uniform_image_has_no_seam_and_does_not_hide_one() -> None:
    plain = np.full((SIDE, SIDE, 3), 0.5)
    # measured: a ratio of 77 with seams
    assert metrics.seam_gradient_ratio(plain, LINES, LINES) == 1.0
    assert metrics.seam_gradient_ratio(with_seam(plain), LINES, LINES) > 1.3


def test_a_decoders_grid_neither_hides_a_seam_nor_counts_as_one(clean) -> None:
    textured = [noisy(picture) for picture in clean]
    # measured: a mean of 0.96 without seams, and at least 1.9 times as much with seams
    levels = [metrics.seam_gradient_ratio(with_grid(picture), LINES, LINES) for picture in textured]
    assert np.mean(levels) == pytest.approx(1, abs=0.05)
    seamed = [metrics.seam_gradient_ratio(with_grid(with_seam(picture)), LINES, LINES) for picture in textured]
    assert min(after / before for before, after in zip(levels, seamed)) > 1.1


def test_the_grid_of_the_base_image_does_not_count_as_a_seam(clean) -> None:
    # at 4x, a cell of the base image is 32 pixels wide in the enlarged image
    enlarged = [with_grid(noisy(picture), 32) for picture in clean]
    # measured: a mean of 0.98 without seams, and at least 2.2 times as much with seams
    levels = [metrics.seam_gradient_ratio(picture, LINES, LINES, 32) for picture in enlarged]
    assert np.mean(levels) == pytest.approx(1, abs=0.05)
    seamed = [metrics.seam_gradient_ratio(with_seam(picture), LINES, LINES, 32) for picture in enlarged]
    assert min(after / before for before, after in zip(levels, seamed)) > 1.1


@pytest.mark.parametrize("factor", [2, 4])
def test_dilated_grain_is_detected(clean, factor: int) -> None:
    # measured: a ratio of at most 1.4 in clean images, and of at least 185 with dilated grain
    assert max(metrics.comb_ratio(picture, factor) for picture in clean) < 3
    assert min(metrics.comb_ratio(with_comb(picture, factor), factor) for picture in clean) > 20


@pytest.mark.parametrize("factor", [2, 4])
def test_slowly_varying_differences_between_dilated_views_are_detected(clean, factor: int) -> None:
    """Differences that change slowly across the image leave no peak in the spectrum, but increase the phase ratio.

    Measured: the ratio is at most 0.59 in clean images. It is at least 2.4 times as high with the differences. Noise
    increases it by at most 0.02.
    """
    rng = np.random.default_rng(5)
    cells = SIDE // 8
    grain = np.empty((cells, cells))
    for row in range(factor):
        for column in range(factor):
            part = ndimage.gaussian_filter(rng.normal(0, 1, (cells // factor,) * 2), 2.0)
            grain[row::factor, column::factor] = 0.05 * part / part.std()
    for picture in clean:
        grained = (picture + np.kron(grain, np.ones((8, 8)))[..., None]).astype(np.float32)
        before, after = (metrics.phase_ratio(x, factor) for x in (picture, grained))
        assert before < 0.8
        assert after > 1.25 * before
        assert metrics.phase_ratio(noisy(picture), factor) == pytest.approx(before, abs=0.02)


def test_other_defects_do_not_count_as_dilated_grain(clean) -> None:
    # measured: a ratio of at most 1.52 with these three defects
    for picture in clean:
        for defect in (blurred, noisy, smeared):
            assert metrics.comb_ratio(defect(picture), 4) < 4, defect.__name__


def test_streaks_are_detected(clean) -> None:
    # measured: at most 0.18 with even noise, and at least 0.86 with streaks
    even = [metrics.anisotropy(noisy(picture, 0.05)) for picture in clean]
    streaked = [metrics.anisotropy(smeared(picture)) for picture in clean]
    assert min(streaked) > max(even) + 0.2


def test_tone_drift_is_measured_and_noise_does_not_count(clean, bases) -> None:
    for picture, base in zip((picture.astype(float) for picture in clean), (base.astype(float) for base in bases)):
        assert metrics.tone_drift(picture, base) == pytest.approx(0, abs=1e-6)
        # measured: at most 0.0006 with noise
        assert metrics.tone_drift(noisy(picture), base) < 0.002
        shifted = 0.5 * picture + np.array([0.3, 0.1, 0.2], np.float32)
        # the factor 0.5 halves the standard deviation, so it differs by half of the base image's standard deviation
        expected = np.abs(shifted.mean((0, 1)) - base.mean((0, 1))).mean() + 0.5 * base.std((0, 1)).mean()
        assert metrics.tone_drift(shifted, base) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("world", list(WORLDS.values()), ids=list(WORLDS))
def test_the_first_prompts_are_unique_and_cover_every_subject_and_ground(world) -> None:
    labels = [world.label(number) for number in range(64)]
    assert len(set(labels)) == 64
    assert {subject for subject, _ in labels} == set(range(24))
    assert {ground for _, ground in labels} == set(world.grounds)


def test_prompts_keep_their_numbers() -> None:
    """The tables in bench/README.md name prompts by number."""
    assert COLLAGES.prompt(0) == "a bear on grass"
    assert COLLAGES.prompt(63) == "a gnu on moss"
    assert WORLDS["flat"].prompt(0) == "a bear on red paper"
