"""Matches the colors of large areas of an image to the colors of the smaller base image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_demofusion.method.filters import smooth

AREA = 4
"""Side of the areas whose mean colors are compared, in pixels of the base image."""

RADIUS = 1 / 32
"""Standard deviation of the low-pass filter, as a share of the image's shorter side."""

FINE_PASSES = 3
"""Number of corrections after the fit. Each correction adds the part of the low band that is still missing."""

COARSE_RADIUS, COARSE_PASSES = 1 / 16, 6
"""Standard deviation of a coarser low-pass filter, as a share of the shorter side, and the number of its corrections.

This filter does not reduce the weight of areas on edges.
"""

FLAT = 0.003
"""Variance of colors (in -1..1) below which a part of the base counts as flat, so its correction is constant."""

EDGE = 0.3
"""Color difference (in -1..1) between neighboring areas of the base that counts as an edge."""

MAX_RELATIVE_SHIFT = 2.0
"""Maximum shift of a pixel in an area whose detail is compressed, relative to the shift of the area's mean."""

FEWEST_PASSES, MOST_PASSES = 2, 4
"""Minimum and maximum number of passes of the whole correction."""

MAX_DRIFT = 0.5 * 2 / 255
"""Maximum difference between the mean colors of a quarter of the picture and of the base after the last pass.

If the difference is larger, another pass follows, up to MOST_PASSES. The difference is half of one of 255 levels, for
colors in -1..1.
"""

AT_ONCE = 1 << 16
"""Number of pixels per channel that are corrected at once."""


def match_colors_(picture: Tensor, base: Tensor, painted: Tensor | None = None) -> Tensor:
    """Replaces the low band of `picture` (3, H, W) with the low band of the enlarged `base` (3, h, w), in place.

    All colors are in -1..1, and the result is clamped to this range. `painted` (1, h', w') is a mask with values in
    0..1. Pixels at which the mask is 0 do not change.

    Super-resolution models correct their colors in a similar way. They combine the high band of the result with the low
    band of the input (the wavelet color fix of StableSR, arXiv 2305.07015; SUPIR, arXiv 2401.13627). With a plain
    low-pass filter, the correction of a subject leaks into the background. Here the correction is a locally affine
    function of the base's colors, as in the guided filter (He and Sun, arXiv 1505.00996). The correction therefore
    stops at the edges of the base.

    There are two to four passes. If a pass compresses detail, it makes only a part of the correction there, and the
    next pass adds the rest. The passes end when every quarter of the picture is closer than MAX_DRIFT to the base. The
    areas at the border of the mask keep a part of their color drift. This drift must not affect neighboring areas, so
    all passes after the first leave these areas out of the fit.

    The function works row by row. Besides the image, it needs memory for fields of (h / AREA, w / AREA) and for some
    rows.
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
    """Returns the largest mean of `missing` (3, h, w) in a quarter of the picture, with the weights `fit` (1, h, w)."""
    weighted = missing if fit is None else missing * fit
    return float(F.adaptive_avg_pool2d(weighted[None], 2).abs().max())


def _fields(areas: _Areas, wanted: Tensor, mask: Tensor | None, fit: Tensor | None) -> dict[str, Tensor]:
    """Returns the fields (C, h, w) that describe the correction of `areas` to the mean colors `wanted` (3, h, w).

    `fit` (1, h, w) is the weight of each area in the fit.
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
    """Mean, minimum and maximum (3, h, w) of every area of an image."""

    mean: Tensor
    low: Tensor
    high: Tensor


def _grid(base: Tensor) -> tuple[int, int]:
    """Returns the number of areas of a base image (3, h, w), vertically and horizontally."""
    return max(base.shape[-2] // AREA, 1), max(base.shape[-1] // AREA, 1)


def _means(picture: Tensor, size: tuple[int, int]) -> Tensor:
    return F.adaptive_avg_pool2d(picture[None], size)[0]


def _areas(picture: Tensor, size: tuple[int, int]) -> _Areas:
    """Computes the mean, minimum and maximum of the areas of an image (3, H, W), row by row."""
    height, rows = picture.shape[-2], size[0]
    means, lows, highs = [], [], []
    for row in range(rows):
        part = picture[:, row * height // rows : -(-(row + 1) * height // rows)].float()[None]
        means.append(F.adaptive_avg_pool2d(part, (1, size[1]))[0])
        highs.append(F.adaptive_max_pool2d(part, (1, size[1]))[0])
        lows.append(-F.adaptive_max_pool2d(-part, (1, size[1]))[0])
    return _Areas(torch.cat(means, 1), torch.cat(lows, 1), torch.cat(highs, 1))


def _correction(missing: Tensor, guide: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns slope (3, 3, h, w) and offset (3, h, w) of the affine functions of `guide` that fit `missing` locally.

    `missing` and `guide` are (3, h, w). Areas on edges of the guide have a low weight in the fit, because an edge of
    the picture can be sharper than in the base, or in another place. The part of the low band that the fit does not
    reproduce is added to the offset.
    """
    weight = torch.ones_like(guide[:1]) if mask is None else mask
    shorter = min(guide.shape[-2:])
    low = _LowPass(weight / (1 + (_contrast(guide) / EDGE) ** 2), shorter * RADIUS)
    mean, wanted = low(guide), low(missing)
    pairs = low.of_products(guide, guide) - mean[:, None] * mean
    joint = low.of_products(missing, guide) - wanted[:, None] * mean
    pairs = pairs.permute(2, 3, 0, 1) + FLAT * torch.eye(3, dtype=guide.dtype)
    slope = torch.linalg.solve(pairs, joint.permute(2, 3, 1, 0)).permute(3, 2, 0, 1)
    slope, offset = low(slope.flatten(0, 1)).unflatten(0, (3, 3)), low(wanted - (slope * mean).sum(1))
    for again in (*[low] * FINE_PASSES, *[_LowPass(weight, shorter * COARSE_RADIUS)] * COARSE_PASSES):
        offset = offset + again(missing - (slope * guide).sum(1) - offset)
    return slope, offset


class _LowPass:
    """Gaussian filter with a standard deviation of `std` areas. `weight` (1, h, w) is the weight of each area."""

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
    """Returns the range of colors among each area and its neighbors, (1, h, w), for a guide (3, h, w)."""
    highest, lowest = (F.max_pool2d(x[None], 3, 1, 1)[0] for x in (guide, -guide))
    return (highest + lowest).amax(0, keepdim=True)


def _compression(areas: _Areas, wanted: Tensor, moved: Tensor) -> dict[str, Tensor]:
    """Returns the compression of detail that prevents clipping when the mean colors shift by `moved` to `wanted`.

    "up" is the compression towards the maximum, and "down" is the compression towards the minimum. Both are (3, h, w)
    in 0..1. The dict is empty if no compression is needed.
    """
    up, down = _share(areas.high, wanted, moved), _share(-areas.low, -wanted, -moved)
    if not (up.any() or down.any()):
        return {}
    # the share is interpolated between areas, so each area also uses the largest share of its neighbors
    up, down = (F.max_pool2d(share[None], 5, 1, 2)[0] for share in (up, down))
    return {"up": up, "down": down}


def _share(high: Tensor, wanted: Tensor, moved: Tensor) -> Tensor:
    """Returns the smallest compression k (0..1) with which no value of an area exceeds 1 when the area is shifted up.

    A value y is shifted by moved (1 + k ((1 - y) / (1 - mean) - 1)), where mean + moved = wanted. With k = 0, every
    value is shifted equally. With k = 1, white stays unchanged. The shift of the mean does not depend on k.
    """
    excess = high + moved - 1
    saved = moved * (high - wanted + moved) / (1 - wanted + moved).clamp_min(1e-4)
    share = (excess / saved.clamp_min(1e-6)).clamp(0, 1)
    return torch.where((excess > 0) & (moved > 0), share, torch.zeros_like(share))


def _apply_(picture: Tensor, base: Tensor, fields: dict[str, Tensor]) -> None:
    """Adds the correction to `picture` (3, H, W) in place, a few rows at a time."""
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
    """Returns the shift of each value in y. The shifts change the mean by `moved` to `wanted` (see `_share`)."""
    sign = torch.where(moved > 0, 1.0, -1.0)
    share = torch.where(moved > 0, fields["up"], fields["down"])
    room = (1 - sign * y) / (1 - sign * (wanted - moved)).clamp_min(1e-4)
    return moved * (1 + share * (room.clamp_max(MAX_RELATIVE_SHIFT) - 1))


def _rows(fields: Tensor, rows: range, size: tuple[int, int]) -> Tensor:
    """Upscales fields (C, h, w) to `size` (height, width) by linear interpolation, but only computes the given rows."""
    height, width = size
    place = (torch.arange(rows.start, rows.stop, dtype=torch.float64) + 0.5) * fields.shape[-2] / height - 0.5
    place = place.clamp(0, fields.shape[-2] - 1)
    above = place.floor().long()
    below = (above + 1).clamp_max(fields.shape[-2] - 1)
    between = (place - above).to(fields.dtype)[:, None]
    column = torch.lerp(fields[:, above], fields[:, below], between.expand(len(rows), fields.shape[-1]))
    return F.interpolate(column[None], (len(rows), width), mode="bilinear", align_corners=False)[0]
