"""Tests that a collage shows the same scene at every size, and that its subjects have no colored edges.

A collage is a test scene: cut-out subjects in front of a ground (a background), which is a photograph or one flat
color.
"""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from trial.collage.content import Content, captions, cutout, flat_grounds, ground, ground_kinds, listed, load
from trial.collage.scenes import (
    EDGE,
    HUE_SPREAD,
    SIZE_RANGE,
    Collage,
    Placed,
    extent,
    random_collage,
    render,
    to_uint8,
)


def smooth_noise(seed: int, side: int) -> Image.Image:
    """Creates a substitute for a photograph: noise without high frequencies."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
    return coarse.resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def content() -> Content:
    """Creates two subjects (a white disc and a wide black bar) and two grounds (noise and green).

    The transparent pixels around the disc are red.
    """
    disc = Image.new("RGBA", (300, 300), (255, 0, 0, 0))
    ImageDraw.Draw(disc).ellipse((20, 20, 280, 280), fill=(255, 255, 255, 255))
    bar = Image.new("RGBA", (400, 260), (0, 0, 0, 0))
    ImageDraw.Draw(bar).rectangle((50, 100, 349, 159), fill=(0, 0, 0, 255))
    plain = Image.new("RGB", (800, 600), (0, 128, 0))
    return Content(
        (cutout("a disc", disc), cutout("a bar", bar)),
        (ground("noise", smooth_noise(0, 1024), 800), ground("green", plain, 500, [0, 0, 700, 600])),
    )


def shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """Reduces the sides of a square image (side, side, 3) in 0..1 by a factor."""
    side = len(image) // factor
    return np.asarray(Image.fromarray(to_uint8(image)).resize((side, side), Image.Resampling.LANCZOS)) / 255


@pytest.mark.parametrize("label", [(0, 0), (1, 0), (0, 1)])
def test_a_small_rendering_equals_a_large_rendering_that_was_shrunk(content, label):
    scene = random_collage(content, np.random.default_rng(2), label)
    error = np.abs(render(content, scene, 64) - shrink(render(content, scene, 512), 8))
    # measured: at most 0.0042, on the scale 0..1
    assert error.mean() < 0.01


def test_the_color_of_transparent_pixels_is_not_visible(content):
    scene = Collage(1, (Placed(0, 0.5, 0.5, 0.7),))
    picture = render(content, scene, 100)
    # red and blue are equal in white, in this green and in their mixtures; the red of transparent pixels would differ
    assert (picture[..., 0] - picture[..., 2]).max() < 3 / 255


@pytest.mark.parametrize("size", [64, 200, 777])
def test_the_subject_covers_the_expected_area(content, size):
    scene = Collage(1, (Placed(1, 0.4, 0.55, 0.5),))
    # the subject is the black bar, and the green of the ground is about 0.5
    dark = render(content, scene, size)[..., 1] < 0.25
    rows, columns = np.nonzero(dark)
    assert columns.mean() / size == pytest.approx(0.4, abs=1.5 / size)
    assert rows.mean() / size == pytest.approx(0.55, abs=1.5 / size)
    # the longer side of the bar is half of the image, and the bar has 300 x 60 pixels
    assert dark.mean() == pytest.approx(0.5 * 0.5 * 60 / 300, abs=2.0 / size)


@pytest.mark.parametrize("seed", range(8))
def test_a_random_subject_is_inside_the_image(content, seed):
    scene = random_collage(content, np.random.default_rng(seed), (seed % 2, 0))
    placed = scene.subjects[0]
    assert SIZE_RANGE[0] <= placed.size <= SIZE_RANGE[1]
    # 1e-9 allows for rounding
    for centre, length in zip((placed.x, placed.y), extent(content, placed)):
        assert length / 2 + EDGE - 1e-9 <= centre <= 1 - length / 2 - EDGE + 1e-9


def test_a_mirrored_scene_has_a_mirrored_photograph(content):
    scene = Collage(0, (), left=0.3)
    mirrored = Collage(0, (), left=0.3, mirrored=True)
    np.testing.assert_allclose(render(content, mirrored, 128)[:, ::-1], render(content, scene, 128), atol=1 / 255)


def test_a_flat_ground_has_the_same_saturated_color_at_every_size():
    """Each scene has its own shade, which depends on `left` and `top`. The hue changes by at most HUE_SPREAD."""
    grounds = tuple(flat_grounds(listed()))
    content = Content((), grounds)
    for index, flat in enumerate(grounds):
        shades = []
        for left, top in ((0.0, 0.0), (0.3, 0.9), (1.0, 1.0)):
            scene = Collage(index, (), left, top)
            small, large = render(content, scene, 32), render(content, scene, 128)
            assert (small == small[0, 0]).all()
            assert (large == small[0, 0]).all()
            hue, saturation, _ = colorsys.rgb_to_hsv(*small[0, 0].tolist())
            assert saturation > 0.7
            assert abs((hue * 360 - flat.colour[0] + 180) % 360 - 180) <= HUE_SPREAD + 0.1
            shades.append(tuple(small[0, 0]))
        assert len(set(shades)) == 3


def test_ground_kinds_have_the_indices_of_their_captions():
    names = captions()[1]
    kinds = ground_kinds()
    assert [names[i] for i in kinds["collages"]] == [g["caption"] for g in listed()["grounds"]]
    assert [names[i] for i in kinds["flat"]] == [g["caption"] for g in listed()["flat_grounds"]]


def test_captions_are_unique_and_the_packages_of_all_grounds_are_listed():
    subjects, grounds = captions()
    # there are 24 subjects and 16 grounds now; the limits find a list that is incomplete
    assert 24 <= len(set(subjects)) == len(subjects) <= 40
    assert 14 <= len(set(grounds)) == len(grounds) <= 18
    assert {g["package"] for g in listed()["grounds"]} <= set(listed()["packages"])


def test_a_missing_package_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"trial\.collage\.fetch"):
        load(tmp_path)
