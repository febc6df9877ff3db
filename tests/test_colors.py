"""Tests `match_colors_`, with which *Keep colors* corrects decoded images.

The test images are created with known differences of color. Some tests use low-pass filters of SciPy as a reference.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from bench.peak_bytes import PeakBytes
from lib_demofusion.method import colors
from lib_demofusion.method.colors import match_colors_

LEVEL = 2 / 255
"""The difference between two adjacent levels of an 8-bit image, on the scale -1..1. It is the unit of most limits."""

SIZES = [((128, 128), (512, 512)), ((192, 128), (384, 256)), ((104, 152), (168, 248)), ((64, 64), (512, 512))]
"""Pairs of the size of a base image and the size of the enlarged image, in pixels."""


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def smooth_picture(size: tuple[int, int], seed: int = 0) -> Tensor:
    """Returns a smooth random image (3, h, w) with colors in -0.6..0.6."""
    areas = F.interpolate(randn(1, 3, 6, 6, seed=seed).tanh() * 0.6, size, mode="bicubic", align_corners=False)
    return areas[0].clamp(-0.6, 0.6)


def enlarged(base: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(base[None], size, mode="bicubic", align_corners=False)[0]


def fine(size: tuple[int, int], amplitude: float) -> Tensor:
    """Returns detail (3, H, W) that a smaller base image cannot contain: a checkerboard with squares of one pixel.

    The values are `amplitude` and -`amplitude` in turn, each multiplied by a random factor from 0.4 to 1.6.
    """
    signs = (torch.arange(size[0])[:, None] + torch.arange(size[1])) % 2 * 2.0 - 1
    return amplitude * signs * (1 + 0.3 * randn(3, *size, seed=5).clamp(-2, 2))


def drift_of_blocks(one: Tensor, other: Tensor, count: int = 4) -> float:
    """Divides two images into count x count blocks.

    Returns the largest difference between the mean colors of the same block in both images, in 8-bit color levels.
    A difference of 1 is LEVEL.
    """
    means = [F.adaptive_avg_pool2d(picture[None].double(), count) for picture in (one, other)]
    return float((means[0] - means[1]).abs().max() / LEVEL)


@pytest.mark.parametrize(("small", "large"), SIZES)
def test_large_areas_get_the_colors_of_the_base_and_detail_is_kept(
    small: tuple[int, int], large: tuple[int, int]
) -> None:
    base = smooth_picture(small)
    clean = enlarged(base, large)
    tint = torch.tensor([0.15, -0.1, 0.05]).view(3, 1, 1)
    picture = 0.8 * clean + tint + 0.1 * smooth_picture(large, seed=3) + fine(large, 0.05)
    assert drift_of_blocks(picture, base) > 20
    matched = match_colors_(picture.clone(), base)
    assert drift_of_blocks(matched, base) < 1
    torch.testing.assert_close(matched - clean, fine(large, 0.05), rtol=0, atol=4 * LEVEL)


@pytest.mark.parametrize(("small", "large"), SIZES[:3])
def test_result_and_base_are_almost_equal_after_a_low_pass_filter_of_scipy(
    small: tuple[int, int], large: tuple[int, int]
) -> None:
    base, std = smooth_picture(small), min(large) / 12

    def low(picture: Tensor) -> np.ndarray:
        return ndimage.gaussian_filter(picture.double().numpy(), (0, std, std), mode="nearest")

    picture = enlarged(base, large) * 0.7 + 0.2 + fine(large, 0.05)
    margin = int(std)
    off = np.abs(low(match_colors_(picture, base)) - low(enlarged(base, large)))[:, margin:-margin, margin:-margin]
    assert off.max() < 2 * LEVEL
    assert off.mean() < 0.3 * LEVEL


def test_a_saturated_background_with_strong_detail_gets_the_colors_of_the_base() -> None:
    """The base image is a dark disk on a red background. The enlarged image has a paler red and a ragged edge.

    The red of the base is close to the maximum, so the correction must compress the detail of the background.
    """
    across = [torch.linspace(0, 1, side) - 0.3 for side in (128, 256)]
    small, large = ((line[:, None] ** 2 + line**2).sqrt() for line in across)
    subject, ragged = small < 0.25, large + 0.05 * randn(256, 256, seed=1) < 0.25
    dark, red, faded = (
        torch.tensor(color).view(3, 1, 1) for color in ((-0.7, -0.6, -0.8), (0.9, -0.8, -0.75), (0.5, -0.55, -0.6))
    )
    base = torch.where(subject, dark, red)
    picture = torch.where(ragged, dark, faded) + fine((256, 256), 0.5)
    assert drift_of_blocks(picture, base) > 50
    assert drift_of_blocks(match_colors_(picture, base), base) < 1


def near_black(seed: int) -> tuple[Tensor, Tensor]:
    """Returns a base image (3, 128, 128) with little blue, and an enlarged image with other colors and strong detail.

    Near black, a pass of `match_colors_` compresses detail, and then makes only a part of the correction.
    """
    base = smooth_picture((128, 128), seed)
    base[2] = (base[2] - 0.8).clamp(-1, 1)
    drift = torch.tensor([0.1, 0.1, 0.4]).view(3, 1, 1)
    return base, (enlarged(base, (384, 384)) + drift + fine((384, 384), 0.5)).clamp(-1, 1)


def test_large_areas_near_black_get_the_colors_of_the_base() -> None:
    """After two passes, a difference of 1.2 color levels would remain. The limit of 0.75 needs more passes."""
    base, picture = near_black(seed=1)
    assert drift_of_blocks(picture, base, count=2) > 50
    assert drift_of_blocks(match_colors_(picture, base), base, count=2) < 0.75


def test_a_small_painted_part_near_black_gets_the_colors_of_the_base() -> None:
    """The passes must continue until the colors match, although only a part of the top left quarter is painted.

    After two passes, a difference of 1.03 color levels would remain. After all passes, it is 0.54.
    """
    base, picture = near_black(seed=0)
    painted = torch.zeros(1, 16, 16)
    painted[:, :6, :6] = 1
    matched = match_colors_(picture, base, painted)
    # the border of the painted part keeps a part of the difference, so only 5 x 5 of the 6 x 6 mask values are compared
    assert drift_of_blocks(matched[:, :120, :120], base[:, :40, :40], count=1) < 0.75


def test_colors_that_already_match_change_by_at_most_one_and_a_half_levels() -> None:
    base = smooth_picture((128, 128))
    picture = enlarged(base, (256, 256)) + fine((256, 256), 0.05)
    torch.testing.assert_close(match_colors_(picture.clone(), base), picture, rtol=0, atol=1.5 * LEVEL)


def two_areas(side: int, left: float, right: float) -> Tensor:
    """Returns an image (3, side, side) with the gray value `left` in its left half and `right` in its right half."""
    return torch.where(torch.arange(side) < side // 2, left, right).expand(3, side, side).clone()


def halo(picture: Tensor, clean: Tensor, margin: int) -> float:
    """Returns the largest mean error of a column of pixels, in 8-bit color levels. An error of 1 is LEVEL.

    Leaves out `margin` columns on each side of the vertical edge in the middle of the image.
    """
    error = (picture - clean).mean((0, 1)).abs() / LEVEL
    middle = len(error) // 2
    return float(torch.cat([error[: middle - margin], error[middle + margin :]]).max())


def plain_low_pass(picture: Tensor, base: Tensor) -> Tensor:
    """Corrects colors with a plain Gaussian low-pass filter, which does not stop at edges."""
    low = picture - enlarged(base, tuple(picture.shape[-2:]))
    blurred = ndimage.gaussian_filter(low.double().numpy(), (0, 16, 16), mode="nearest")
    return picture - torch.from_numpy(blurred).float()


@pytest.mark.parametrize("areas", [(-0.3, 0.4), (0.5, -0.6), (-0.05, 0.15)])
def test_no_halo_if_subject_and_background_drift_in_opposite_directions(areas: tuple[float, float]) -> None:
    base, clean = two_areas(128, *areas), two_areas(512, *areas)
    picture = clean + two_areas(512, -0.12, 0.15) + fine((512, 512), 0.03)
    assert halo(plain_low_pass(picture, base), clean, 4) > 6
    assert halo(match_colors_(picture, base), clean, 4) < 3


def test_an_edge_that_is_sharper_than_in_the_base_gets_no_halo() -> None:
    clean = two_areas(512, -0.5, 0.6)
    blurred = ndimage.gaussian_filter(two_areas(128, -0.5, 0.6).numpy(), (0, 1, 1), mode="nearest")
    assert halo(match_colors_(clean.clone(), torch.from_numpy(blurred)), clean, 8) < 3


@pytest.mark.parametrize("sign", [1, -1], ids=["white", "black"])
@pytest.mark.parametrize("edge", [False, True])
def test_bright_and_dark_areas_do_not_clip(sign: int, edge: bool) -> None:
    """The right half of the base is almost white (or almost black).

    The right half of the image is slightly darker (or brighter) and has detail. A plain shift to the color of the base
    would clip this detail. With `edge`, the left half has another color, so there is an edge in the middle. Without
    `edge`, both halves have the same color.
    """
    base, picture = sign * two_areas(128, -0.6 if edge else 0.96, 0.96), sign * two_areas(512, 0.82, 0.82)
    if edge:
        picture[..., :256] = sign * -0.5
    detail = fine((512, 512), 0.08)
    picture += detail
    right = slice(260, None)
    shifted = picture + sign * 0.14
    assert (shifted[..., right].abs() > 1).float().mean() > 0.3
    matched = match_colors_(picture.clone(), base)
    assert (matched[..., right].abs() >= 1).float().mean() < 1e-3
    assert abs(float(matched[..., right].mean()) - sign * 0.96) < LEVEL
    # the detail is compressed as far as necessary, but not lost
    joint = torch.stack([matched[..., right].flatten(), detail[..., right].flatten()])
    assert torch.corrcoef(joint)[0, 1] > 0.98
    assert matched[..., right].std() > 0.02


def test_an_image_with_a_white_base_becomes_white() -> None:
    matched = match_colors_(0.8 + fine((256, 256), 0.05), torch.ones(3, 64, 64))
    assert matched.mean() > 1 - LEVEL


def test_noise_and_posterization_of_the_base_are_not_copied() -> None:
    clean = smooth_picture((128, 128))
    coarse = (clean * 8).round() / 8 + 0.05 * randn(3, 128, 128, seed=2)
    picture = enlarged(clean, (512, 512)) * 0.9 + 0.08
    matched = match_colors_(picture.clone(), coarse)

    # large areas correctly adopt the slightly wrong colors of the posterized base, so only fine structures are compared
    def fine_part(x: Tensor) -> Tensor:
        return x - torch.from_numpy(ndimage.uniform_filter(x.numpy(), (1, 33, 33)))

    copied, in_base = fine_part(matched) - fine_part(picture), fine_part(enlarged(coarse, (512, 512)) - picture)
    assert copied.std() < 0.2 * in_base.std()


def test_pixels_outside_the_mask_do_not_change_except_near_its_border() -> None:
    base = two_areas(128, -0.2, 0.5)
    picture = two_areas(512, -0.2, 0.5) + fine((512, 512), 0.05)
    picture[..., 256:] += 0.2
    painted = (torch.arange(16) >= 8).float().expand(1, 16, 16)
    matched = match_colors_(picture.clone(), base, painted)
    assert torch.equal(matched[..., :240], picture[..., :240])
    assert abs(float((matched - two_areas(512, -0.2, 0.5))[..., 280:].mean())) < LEVEL


def test_pixels_outside_the_mask_do_not_affect_the_correction_inside_the_mask() -> None:
    """In inpainting, the pixels outside the mask are from the upload, which may have other colors."""
    base = torch.zeros(3, 128, 128)
    painted = (torch.arange(16) >= 8).float().expand(1, 16, 16)
    one = torch.full((3, 256, 256), 0.1)
    other = one.clone()
    other[..., :120] = -0.8
    pair = [match_colors_(picture, base, painted)[..., 160:] for picture in (one, other)]
    torch.testing.assert_close(pair[0], pair[1], rtol=0, atol=LEVEL)


@pytest.mark.parametrize("at_once", [1, 3000, 100_000])
def test_the_number_of_pixels_that_are_corrected_at_once_does_not_change_the_result(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    base = smooth_picture((96, 128))
    picture = enlarged(base, (264, 352)) * 1.6 + 0.3 + fine((264, 352), 0.1)
    whole = match_colors_(picture.clone(), base)
    monkeypatch.setattr(colors, "AT_ONCE", at_once)
    torch.testing.assert_close(match_colors_(picture.clone(), base), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [torch.float16, torch.float32])
def test_a_large_image_needs_little_additional_memory(kind: torch.dtype) -> None:
    """The limit is the size of one and a half channels of the image in float32.

    In comparison, Stable Diffusion's decoder needs at least 128 channels of the same size.
    """
    picture = torch.zeros(3, 2048, 2048, dtype=kind)
    base = smooth_picture((256, 256))
    address = picture.data_ptr()
    with PeakBytes() as memory:
        matched = match_colors_(picture, base)
    assert memory.peak < 2048 * 2048 * 6
    assert (matched.data_ptr(), matched.dtype) == (address, kind)
    assert drift_of_blocks(matched[:, ::4, ::4], base) < 1


@pytest.mark.parametrize("kind", [torch.float16, torch.float64])
def test_images_in_half_and_double_precision_get_the_same_colors(kind: torch.dtype) -> None:
    base = smooth_picture((128, 128))
    picture = enlarged(base, (256, 256)) * 0.8 + 0.1
    expected = match_colors_(picture.clone(), base)
    matched = match_colors_(picture.to(kind), base)
    assert matched.dtype == kind
    torch.testing.assert_close(matched.float(), expected, rtol=0, atol=1e-3)
