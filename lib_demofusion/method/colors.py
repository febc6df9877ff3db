"""Matches the colors of large areas of an image to the colors of the smaller base image.

Both images are divided into the same number of small areas. Each area has a mean color in each image. A fit
approximates the difference between these two colors with functions that are affine in the colors of the base image, and
that differ from area to area. These functions are interpolated between the areas. The result is the correction, which
is added to the pixels of the larger image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_demofusion.method.filters import smooth

AREA = 4
"""Approximate side of an area in pixels of the base image."""

RADIUS = 1 / 32
"""Standard deviation of the low-pass filter of the fit, as a share of the shorter side of the image."""

FINE_PASSES = 3
"""Number of times that the remaining color difference is low-pass filtered and added to the correction."""

COARSE_RADIUS, COARSE_PASSES = 1 / 16, 6
"""The same two numbers for a second, coarser low-pass filter. It is applied after all passes of the first filter.

The first filter gives areas on edges of the base image a low weight. The second filter does not.
"""

REGULARIZATION = 0.003
"""A variance of colors in -1..1. The fit adds it to the local variance of the colors of the base image.

Where the variance of the base image is much smaller than this number, the correction is almost constant.
"""

EDGE = 0.3
"""Color difference, for colors in -1..1.

If the largest difference among an area of the base image and its eight neighbors has this value, the weight of the area
in the fit is halved.
"""

MAX_RELATIVE_SHIFT = 2.0
"""No pixel of a compressed area is shifted by more than this factor times the shift of the area's mean color.

An area is compressed if an equal shift of all its pixels would move some of them out of -1..1. The areas around it, up
to two areas away, are compressed as well. The shift of a pixel then depends on its color (see `_least_compression`).
"""

FEWEST_PASSES, MOST_PASSES = 2, 4
"""Minimum and maximum number of times that the whole correction is computed and applied."""

MAX_DRIFT = 0.5 * 2 / 255
"""If the mean color of a quarter of the picture differs more than this from the base image, another pass follows.

There are never more than MOST_PASSES passes. The value is half a level of an 8-bit image, on the scale -1..1.
"""

AT_ONCE = 1 << 16
"""Approximate number of pixels per channel that are corrected at once."""


def match_colors_(picture: Tensor, base: Tensor, painted: Tensor | None = None) -> Tensor:
    """Replaces the low band of `picture` (3, H, W) with the low band of the enlarged `base` (3, h, w), in place.

    The low band is the image after a low-pass filter, so it contains the colors of large areas. Both images and the
    result have colors in -1..1. Values outside of this range are clamped.

    `painted` (1, h', w') is a mask with values in 0..1. Pixels do not change if their distance to the part with a mask
    above 0 is more than two areas.

    Super-resolution models correct their colors in a similar way. They combine the high band of the result with the low
    band of the input (the wavelet color fix of StableSR, arXiv 2305.07015; SUPIR, arXiv 2401.13627). With a plain
    low-pass filter, the correction of a subject leaks into the background. Here the correction is a locally affine
    function of the base's colors, as in the guided filter (He and Sun, arXiv 1505.00996). The correction therefore
    stops at the edges of the base.

    There are two to four passes. In compressed areas, a pass can apply only a part of the correction because of
    MAX_RELATIVE_SHIFT, and the next pass applies the rest. After the second pass, the passes end as soon as the mean
    color of every quarter of the picture is within MAX_DRIFT of the base.

    The mask limits the correction of the areas at its border, so a part of the color difference remains in these areas.
    This part must not affect the correction of neighboring areas. All passes after the first therefore fit only the
    areas that are, with their eight neighbors, completely inside the mask. Only these areas count for MAX_DRIFT.

    The function corrects a few rows at a time. Besides the images, it needs memory for a copy of `base`, for these
    rows, and for tensors with h / AREA rows and w / AREA columns.
    """
    picture.clamp_(-1, 1)
    base = base.float().clamp(-1, 1)
    size = _grid(base)
    wanted = _means(base, size)
    mask = None if painted is None else F.adaptive_avg_pool2d(painted.float()[None], size)[0]
    inner = None if mask is None else (-F.max_pool2d(-mask[None], 3, 1, 1)[0] >= 1).to(mask.dtype)
    for number in range(MOST_PASSES):
        areas = _areas(picture, size)
        if number >= FEWEST_PASSES and _drift(wanted - areas.mean, inner) <= MAX_DRIFT:
            break
        _apply_(picture, base, _fields(areas, wanted, mask, inner if number else mask))
    return picture


def _drift(missing: Tensor, fit: Tensor | None) -> float:
    """Averages the color differences `missing` (3, h, w) over each quarter of the picture.

    Returns the largest absolute value of these means. `fit` (1, h, w) is 0 for areas that do not count, and 1 for all
    others. A quarter in which no area counts has the mean 0.
    """
    if fit is None:
        return float(F.adaptive_avg_pool2d(missing[None], 2).abs().max())
    total, counted = (F.adaptive_avg_pool2d(field[None], 2) for field in (missing * fit, fit))
    return float((total / counted.clamp(min=1e-6)).abs().max())


def _fields(areas: _Areas, wanted: Tensor, mask: Tensor | None, fit: Tensor | None) -> dict[str, Tensor]:
    """Returns the parameters of the correction of `areas` to the mean colors `wanted` (3, h, w).

    The keys of the dict are "slope", "offset", "mask" (only with a mask), and the keys of `_compression`. The values
    are (C, h, w), with one position for each area. `mask` (1, h, w) is the share of the correction that each area gets.
    `fit` (1, h, w) is the weight of each area in the fit. None means that this share or weight is 1 everywhere.
    """
    slope, offset = _correction(wanted - areas.mean, wanted, fit)
    fields = {"slope": slope.flatten(0, 1), "offset": offset}
    moved = (slope * wanted).sum(1) + offset
    if mask is not None:
        fields["mask"] = mask
        moved = moved * mask
    return {**fields, **_compression(areas, wanted, moved)}


@dataclass(frozen=True)
class _Areas:
    """Mean, minimum and maximum of every area of an image. All are (3, h, w) for h x w areas."""

    mean: Tensor
    low: Tensor
    high: Tensor


def _grid(base: Tensor) -> tuple[int, int]:
    """Returns the number of areas of a base image (3, h, w), vertically and horizontally."""
    return max(base.shape[-2] // AREA, 1), max(base.shape[-1] // AREA, 1)


def _means(picture: Tensor, size: tuple[int, int]) -> Tensor:
    return F.adaptive_avg_pool2d(picture[None], size)[0]


def _areas(picture: Tensor, size: tuple[int, int]) -> _Areas:
    """Computes the mean, minimum and maximum of the areas of an image (3, H, W), one row of areas at a time."""
    height, rows = picture.shape[-2], size[0]
    means, lows, highs = [], [], []
    for row in range(rows):
        part = picture[:, row * height // rows : -(-(row + 1) * height // rows)].float()[None]
        means.append(F.adaptive_avg_pool2d(part, (1, size[1]))[0])
        highs.append(F.adaptive_max_pool2d(part, (1, size[1]))[0])
        lows.append(-F.adaptive_max_pool2d(-part, (1, size[1]))[0])
    return _Areas(torch.cat(means, 1), torch.cat(lows, 1), torch.cat(highs, 1))


def _correction(missing: Tensor, guide: Tensor, fit: Tensor | None) -> tuple[Tensor, Tensor]:
    """Fits the color differences `missing` (3, h, w) locally with affine functions of the colors `guide` (3, h, w).

    Returns the slope (3, 3, h, w) and the offset (3, h, w) of these functions. `fit` (1, h, w) is the weight of each
    area. Areas on edges of the guide get a lower weight, because an edge of the picture can be sharper than the same
    edge of the base, or slightly shifted. The fit does not reproduce the low band of `missing` completely. The
    remaining part is added to the offset.
    """
    weight = torch.ones_like(guide[:1]) if fit is None else fit
    shorter = min(guide.shape[-2:])
    low = _LowPass(weight / (1 + (_contrast(guide) / EDGE) ** 2), shorter * RADIUS)
    mean, wanted = low(guide), low(missing)
    pairs = low.of_products(guide, guide) - mean[:, None] * mean
    joint = low.of_products(missing, guide) - wanted[:, None] * mean
    pairs = pairs.permute(2, 3, 0, 1) + REGULARIZATION * torch.eye(3, dtype=guide.dtype)
    slope = torch.linalg.solve(pairs, joint.permute(2, 3, 1, 0)).permute(3, 2, 0, 1)
    slope, offset = low(slope.flatten(0, 1)).unflatten(0, (3, 3)), low(wanted - (slope * mean).sum(1))
    for again in (*[low] * FINE_PASSES, *[_LowPass(weight, shorter * COARSE_RADIUS)] * COARSE_PASSES):
        offset = offset + again(missing - (slope * guide).sum(1) - offset)
    return slope, offset


class _LowPass:
    """A Gaussian filter of weighted areas. `std` is its standard deviation, with the side of an area as the unit.

    `weight` (1, h, w) is the weight of each area.
    """

    def __init__(self, weight: Tensor, std: float):
        self._weight, self._std = weight, max(std, 0.5)
        self._total = smooth(weight[None], self._std)[0].clamp_min(1e-4)

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the low band of x (C, h, w)."""
        return smooth((x * self._weight)[None], self._std)[0] / self._total

    def of_products(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the low band of all products of channels of x and y, (C, C, h, w)."""
        products: Tensor = self((x[:, None] * y).flatten(0, 1)).unflatten(0, (len(x), len(y)))
        return products


def _contrast(guide: Tensor) -> Tensor:
    """Returns the largest color difference among each area of `guide` (3, h, w) and its eight neighbors, (1, h, w)."""
    highest, lowest = (F.max_pool2d(x[None], 3, 1, 1)[0] for x in (guide, -guide))
    return (highest + lowest).amax(0, keepdim=True)


def _compression(areas: _Areas, wanted: Tensor, moved: Tensor) -> dict[str, Tensor]:
    """Returns the compression of detail that prevents clipping when the mean colors shift by `moved` to `wanted`.

    "up" is the compression in areas that become brighter, and "down" is the compression in areas that become darker
    (see `_least_compression`). Both are (3, h, w) in 0..1. The dict is empty if no compression is needed.
    """
    up, down = _least_compression(areas.high, wanted, moved), _least_compression(-areas.low, -wanted, -moved)
    if not (up.any() or down.any()):
        return {}
    # each area gets the maximum of the 5 x 5 areas around it, so that interpolation does not reduce the compression
    up, down = (F.max_pool2d(least[None], 5, 1, 2)[0] for least in (up, down))
    return {"up": up, "down": down}


def _least_compression(high: Tensor, wanted: Tensor, moved: Tensor) -> Tensor:
    """Returns the smallest compression k (0..1) at which no value of an area exceeds 1 when the area becomes brighter.

    `high` is the maximum of each area. For areas that become darker, the caller passes the negated minimum as `high`,
    and the negated values of `wanted` and `moved`.

    A value y is shifted by moved (1 + k ((1 - y) / (1 - mean) - 1)), where mean + moved = wanted. With k = 0, every
    value is shifted equally. With k = 1, white stays unchanged. The mean is shifted by `moved` at every k, unless
    MAX_RELATIVE_SHIFT limits the shift of some values.
    """
    excess = high + moved - 1
    saved = moved * (high - wanted + moved) / (1 - wanted + moved).clamp_min(1e-4)
    share = (excess / saved.clamp_min(1e-6)).clamp(0, 1)
    return torch.where((excess > 0) & (moved > 0), share, torch.zeros_like(share))


def _apply_(picture: Tensor, base: Tensor, fields: dict[str, Tensor]) -> None:
    """Adds the correction to `picture` (3, H, W) in place, a few rows at a time.

    `fields` is the result of `_fields`.
    """
    height, width = picture.shape[-2:]
    count = max(AT_ONCE // width, 1)
    stacked = torch.cat(list(fields.values()))
    sizes = [len(field) for field in fields.values()]
    for first in range(0, height, count):
        rows = range(first, min(first + count, height))
        guide = _rows(base, rows, (height, width))
        here = dict(zip(fields, _rows(stacked, rows, (height, width)).split(sizes)))
        moved = here["offset"]
        for channel, slopes in enumerate(here["slope"].unflatten(0, (3, 3))):
            moved[channel] += (slopes * guide).sum(0)
        if "mask" in here:
            moved *= here["mask"]
        part = picture[:, first : rows.stop]
        y = part.float()
        if "up" in here:
            moved = _compressed(y, guide, moved, here)
        part.copy_(y.add(moved).clamp_(-1, 1))


def _compressed(y: Tensor, wanted: Tensor, moved: Tensor, fields: dict[str, Tensor]) -> Tensor:
    """Returns the shift of each value in y, by the formula in `_least_compression`.

    No shift is larger than MAX_RELATIVE_SHIFT times `moved`.
    """
    sign = torch.where(moved > 0, 1.0, -1.0)
    share = torch.where(moved > 0, fields["up"], fields["down"])
    room = (1 - sign * y) / (1 - sign * (wanted - moved)).clamp_min(1e-4)
    return moved * (1 + share * (room.clamp_max(MAX_RELATIVE_SHIFT) - 1))


def _rows(fields: Tensor, rows: range, size: tuple[int, int]) -> Tensor:
    """Returns the given rows of `fields` (C, h, w) after bilinear interpolation to `size` (height, width)."""
    height, width = size
    place = (torch.arange(rows.start, rows.stop, dtype=torch.float64) + 0.5) * fields.shape[-2] / height - 0.5
    place = place.clamp(0, fields.shape[-2] - 1)
    above = place.floor().long()
    below = (above + 1).clamp_max(fields.shape[-2] - 1)
    between = (place - above).to(fields.dtype)[:, None]
    column = torch.lerp(fields[:, above], fields[:, below], between.expand(len(rows), fields.shape[-1]))
    return F.interpolate(column[None], (len(rows), width), mode="bilinear", align_corners=False)[0]
