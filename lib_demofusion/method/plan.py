"""Plans the stages of a run: their sizes, their views, and the number of cells that they evaluate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lib_demofusion.method.views import LocalView, Size, dilated_size, view_starts
from lib_demofusion.settings.errors import SettingsError
from lib_demofusion.settings.fields import MAX_SCALE, Settings, parse_stages
from lib_demofusion.settings.presets import DOUBLING, FEWEST, STAGE_WORDS

CELL = 8
"""Side of a latent cell in pixels."""

CLOSE_SCALES = 0.5
"""Minimum difference between the final scale and the scale of any other stage.

It applies if the field Stages is 'every' or 'doubling'.
"""

NO_STAGE = "no stage: the final size is the size of the base image"
"""The note for the user if a plan has no stages."""

MIN_TILE, MAX_TILE = 0.5, 2
"""A value of the field `tile_size` from MIN_TILE to MAX_TILE is multiplied by the sides of the base image.

A larger value is the side of a square tile in cells.
"""

MIN_TILE_CELLS = 8
"""Minimum side of a tile in cells."""

MAX_FACTOR = 4
"""Maximum enlargement of one stage if the field Stages is 'fewest'.

The image quality of larger enlargements was not measured.
"""


@dataclass(frozen=True)
class StagePlan:
    """The plan of one stage. Sizes are (height, width) in latent cells."""

    number: int
    """1 for the first stage after the base image."""
    scale: float
    """Enlargement of the cropped base image in each direction. Approximate, because `size` is rounded."""
    size: Size
    """Size of the latent of the stage, rounded to multiples of `unit`."""
    factor: int
    """A dilated view takes every `factor`-th cell of the latent. There are factor x factor dilated views."""
    window: Size
    """Size of a local view."""
    stride: Size
    """Maximum vertical and horizontal distance between the positions of adjacent local views."""
    unit: int = 1
    """The sides of the latent and of every view are multiples of this number of cells.

    The number depends on the model. For example, it is 1 for SDXL and 2 for Flux (`host/backends/families.py`).
    """

    @property
    def pixels(self) -> Size:
        """Height and width of the image that the stage makes, in pixels."""
        return self.size[0] * CELL, self.size[1] * CELL

    @property
    def local_count(self) -> int:
        """Number of local views."""
        axes = zip(self.size, self.window, self.stride)
        rows, columns = (len(view_starts(*axis, self.unit)) for axis in axes)
        return rows * columns

    @property
    def dilated_count(self) -> int:
        """Number of dilated views."""
        return self.factor**2

    def cells_at(self, c2: float) -> int:
        """Returns the number of latent cells that one model call evaluates if the dilated views have weight c2.

        At a c2 of 0, dilated views are not evaluated. At a c2 of 1, local views are not evaluated.
        """
        return (self._local_cells if c2 < 1 else 0) + (self._dilated_cells if c2 > 0 else 0)

    @property
    def _local_cells(self) -> int:
        return self.local_count * math.prod(min(w, n) for w, n in zip(self.window, self.size))

    @property
    def _dilated_cells(self) -> int:
        return self.dilated_count * math.prod(dilated_size(self.size, self.factor, self.unit))


@dataclass(frozen=True)
class Plan:
    """The plan of all stages of a run.

    `base` is the size of the base latent. Stage 1 enlarges only the part `crop` of this latent. `notes` are messages
    for the user.
    """

    base: Size
    crop: LocalView
    stages: tuple[StagePlan, ...]
    notes: tuple[str, ...] = ()

    @property
    def pixels(self) -> Size:
        """Height and width of the final image in pixels."""
        return self.stages[-1].pixels if self.stages else (self.base[0] * CELL, self.base[1] * CELL)


def make_plan(settings: Settings, base: Size, unit: int = 1) -> Plan:
    """Plans the stages from a base latent of size `base` to the final size in the settings.

    The sides of the latents and views of all stages are multiples of `unit` cells. Raises SettingsError if a field does
    not fit the base image or the other fields.
    """
    scales = parse_stages(settings.stages)
    target, notes = _target(settings, base, scales, unit)
    crop = _crop(base, target) if settings.width and settings.height else LocalView(0, 0, *base)
    if (crop.height, crop.width) != base:
        notes.append(f"the base image is cropped to {_pixels(crop)} to match the final shape")
    last = max(target[0] / crop.height, target[1] / crop.width)
    if target == (crop.height, crop.width):
        return Plan(base, crop, (), tuple(notes))
    steps = _intermediate(settings, scales, last)
    # scales whose sizes are equal after rounding share one stage, and the size of the base image gets no stage
    scale_of = {(_round(crop.height * k, unit), _round(crop.width * k, unit)): k for k in steps} | {target: last}
    scale_of.pop((crop.height, crop.width), None)
    window = _window(settings, base, target, unit)
    stride = _stride(settings, window, unit)
    notes += _rounded_tiles(settings, window, stride)
    # rounding to a multiple of `unit` can increase a scale by up to `slack`, which must not increase the factor of the
    # dilated views
    slack = (unit - 1) / min(crop.height, crop.width)
    stages = tuple(
        StagePlan(i + 1, k, size, dilation(k - slack), _fit(window, size), _fit(stride, size), unit)
        for i, (size, k) in enumerate(scale_of.items())
    )
    return Plan(base, crop, stages, tuple(notes))


def _round(value: float, unit: int = 1) -> int:
    """Rounds to the nearest multiple of `unit`, but not below `unit`.

    A value halfway between two multiples is rounded up. Python's `round` would round such a value to an even number.
    """
    return unit * max(1, math.floor(value / unit + 0.5))


def _down(value: float, unit: int) -> int:
    """Rounds down to a multiple of `unit`, but not below `unit`."""
    return unit * max(1, int(value // unit))


def dilation(scale: float) -> int:
    """Returns the factor of the dilated views: `scale` rounded up, but at least 2.

    The paper only uses whole scales. Rounding up keeps the dilated views from being larger than the base image. With
    rounding to the nearest number, the sides of dilated views could be up to 5/4 of the sides of the base image.
    """
    return max(2, math.ceil(scale - 1e-6))


def _pixels(view: LocalView) -> str:
    return f"{view.width * CELL}x{view.height * CELL}"


def _fit(extent: Size, size: Size) -> Size:
    return min(extent[0], size[0]), min(extent[1], size[1])


def _target(settings: Settings, base: Size, scales: Sequence[float], unit: int) -> tuple[Size, list[str]]:
    """Returns the final size in cells, and notes for the user.

    The notes say that the field Upscale by is not used, or that the final size is rounded.
    """
    notes: list[str] = []
    asked: list[float] = [settings.height, settings.width]
    if not any(asked):
        listed = settings.stages and settings.stages not in STAGE_WORDS
        scale = (scales or [1.0])[-1] if listed else settings.scale
        if listed and settings.scale not in (scale, Settings.scale):
            notes.append(f"Upscale by ({settings.scale:g}) is not used, because the last number in Stages is {scale:g}")
        asked = [base[0] * CELL * scale, base[1] * CELL * scale]
    for name, pixels, native in zip(("height", "width"), asked, base):
        if pixels and not native <= _round(pixels / CELL) <= MAX_SCALE * native:
            allowed = f"0, or {native * CELL} to {MAX_SCALE * native * CELL} for this base image"
            raise SettingsError(name, round(pixels), allowed)
    if not all(asked):
        known = 0 if asked[0] else 1
        asked[1 - known] = _round(asked[known] / CELL) * CELL * base[1 - known] / base[known]
    if asked == [side * CELL for side in base]:
        return base, notes
    target = _round(asked[0] / CELL, unit), _round(asked[1] / CELL, unit)
    height, width = map(_round, asked)
    if (height, width) != (target[0] * CELL, target[1] * CELL):
        rounded, multiple = f"{target[1] * CELL}x{target[0] * CELL}", unit * CELL
        notes.append(f"{width}x{height} is rounded to {rounded}, multiples of {multiple} pixels")
    return target, notes


def _crop(base: Size, target: Size) -> LocalView:
    """Returns the largest centered part of the base that has the aspect ratio of the target, rounded to cells."""
    scale = max(target[0] / base[0], target[1] / base[1])
    height = min(base[0], _round(target[0] / scale))
    width = min(base[1], _round(target[1] / scale))
    return LocalView((base[0] - height) // 2, (base[1] - width) // 2, height, width)


def _intermediate(settings: Settings, scales: Sequence[float], last: float) -> list[float]:
    """Returns the scales of the stages before the last one."""
    if settings.stages == FEWEST:
        count = max(1, math.ceil(math.log(last, MAX_FACTOR) - 1e-6))
        return [last ** (i / count) for i in range(1, count)]
    if not scales:
        whole = range(2, math.ceil(last))
        kept = (k for k in whole if settings.stages != DOUBLING or k & (k - 1) == 0)
        return [float(k) for k in kept if k <= last - CLOSE_SCALES]
    if settings.width or settings.height:
        beyond = [k for k in scales if k > last + 1e-6]
        if beyond:
            raise SettingsError("stages", settings.stages, f"scales up to {last:g}, the scale of the final size")
        return [k for k in scales if k < last - 0.01]
    return list(scales[:-1])


def _window(settings: Settings, base: Size, target: Size, unit: int) -> Size:
    """Converts the field `tile_size` to the size of a local view in cells.

    The values 0 and 1 stand for the size of the base image.
    """
    asked = settings.tile_size
    if asked in (0, 1):
        return _down(base[0], unit), _down(base[1], unit)
    if MIN_TILE <= asked <= MAX_TILE:
        return _times(base[0], asked, unit), _times(base[1], asked, unit)
    if not MIN_TILE_CELLS <= asked <= max(target) or asked != int(asked):
        cells = f"{MIN_TILE_CELLS} to {max(target)} cells, the longer side of the final image"
        allowed = f"0, {MIN_TILE} to {MAX_TILE} times the base image, or {cells}"
        raise SettingsError("tile_size", int(asked) if asked == int(asked) else asked, allowed)
    return _down(asked, unit), _down(asked, unit)


def _times(side: int, factor: float, unit: int) -> int:
    """Returns the side of a tile that is about `factor` times the side of the base image.

    The result is a multiple of 4, because the UNet of SDXL halves the resolution twice. If the side of the base image
    is below 32 cells, the result is only a multiple of `unit`.
    """
    step = math.lcm(4, unit) if side >= 4 * MIN_TILE_CELLS else unit
    return max(step * int(side * factor / step + 0.5), _down(min(MIN_TILE_CELLS, side), unit))


def _stride(settings: Settings, window: Size, unit: int) -> Size:
    """Returns the maximum vertical and horizontal distance between adjacent local views in cells.

    The distance is the value of the field `tile_stride`. If this field is 0, the distance is computed from the size of
    the views and the field `overlap`.
    """
    if not settings.tile_stride:
        # without the small summand, rounding errors could turn 0.7 * 10 cells into 6 cells
        rows, columns = (_down(n * (1 - settings.overlap) + 1e-6, unit) for n in window)
        return rows, columns
    if settings.tile_stride > min(window):
        raise SettingsError(
            "tile_stride", settings.tile_stride, f"0, or 1 to {min(window)}, the shorter side of a tile"
        )
    return _down(settings.tile_stride, unit), _down(settings.tile_stride, unit)


def _rounded_tiles(settings: Settings, window: Size, stride: Size) -> list[str]:
    """Returns notes about a tile size or a tile stride that was rounded to a multiple of `StagePlan.unit` cells."""
    tile, distance = settings.tile_size, settings.tile_stride
    notes = [f"tile size {tile:g} is rounded to {window[0]} cells"] if tile > MAX_TILE and tile != window[0] else []
    if distance and distance != stride[0]:
        notes.append(f"tile stride {distance} is rounded to {stride[0]} cells")
    return notes
