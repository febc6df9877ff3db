"""How the time of a run divides among its parts, in latent cells that the model evaluates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lib_demofusion.method.plan import Plan
from lib_demofusion.method.views import Size
from lib_demofusion.progress.forecast import call_cells, even_timesteps, schedule_steps
from lib_demofusion.settings.fields import LATENT, Settings

DECODING = 2.0
"""Evaluations of the model that decoding takes the time of where that was never measured: for SDXL and SD 1.5 the
decoder needs about as many operations for a picture as the UNet does for cond and uncond of its latent, often at twice
the precision."""

ENCODING = 0.44
"""Operations of the encoder's convolutions against those of the decoder's."""

ATTENTION_CELLS = 300_000
"""Size of a latent for which the autoencoder's attention, whose work grows with the square of the cells, needs as many
operations as the decoder's convolutions; about 4400x4400 pixels."""

Pass = tuple[int, Size]
"""Steps of one of the webui's own passes, and its size in cells."""

PictureCost = Callable[[Size], float]
"""Returns what decoding a latent of a size takes, in cells evaluated by the model."""


def decoder_work(size: Size) -> float:
    """Returns the operations that decoding a latent takes, in those of the convolutions for one cell."""
    cells = math.prod(size)
    return cells * (1 + cells / ATTENTION_CELLS)


def encoder_work(size: Size) -> float:
    """Returns the operations that encoding to a latent takes, in the same unit."""
    cells = math.prod(size)
    return cells * (ENCODING + cells / ATTENTION_CELLS)


def reckoned_decoding(size: Size) -> float:
    """Returns what decoding takes as far as that is known without a measurement."""
    return DECODING * decoder_work(size)


@dataclass(frozen=True)
class RunCosts:
    """Cells evaluated by the parts of a run, for one row of a batch."""

    base: float
    pictures: tuple[float, ...]
    """Decoding before each stage, of the picture that it begins from, where that is shown, saved or enlarged."""
    anchors: tuple[float, ...]
    """Encoding the enlarged picture that a stage begins from, where its anchor is made in pixels."""
    stages: tuple[float, ...]
    decoding: float


def run_costs(
    plan: Plan,
    settings: Settings,
    steps: int,
    two_calls: bool,
    passes: Sequence[Pass] | None = None,
    pictures: bool = False,
    decoding: PictureCost = reckoned_decoding,
) -> RunCosts:
    """Returns the costs of a run of `steps` steps as far as they are known before it begins.

    `passes` are the webui's own that make the base picture, without them one of all steps; `pictures` says whether
    every stage's is decoded. The timesteps are taken to fall evenly: how far that is from the truth is about the same
    for every stage.
    """
    timesteps = even_timesteps(schedule_steps(steps, settings), settings.strength, two_calls)
    sizes = [plan.base, *(stage.size for stage in plan.stages)]
    decoded = [decoding(size) for size in sizes]
    from_pixels = settings.anchor != LATENT
    return RunCosts(
        passes_cells([(steps, plan.base)] if passes is None else passes, two_calls),
        tuple(cost if pictures or from_pixels else 0.0 for cost in decoded[:-1]),
        tuple(_encoding(size, decoding) if from_pixels else 0.0 for size in sizes[1:]),
        tuple(float(sum(call_cells(stage, timesteps, settings))) for stage in plan.stages),
        decoded[-1],
    )


def img2img_steps(steps: int, strength: float) -> int:
    """Returns how many steps the webui's img2img runs (modules/sd_samplers_common.py, setup_img2img_steps)."""
    return int(min(strength, 0.999) * steps) + 1


def passes_cells(passes: Sequence[Pass], two_calls: bool) -> float:
    """Returns the cells that the webui's own passes evaluate."""
    return float(sum(len(even_timesteps(steps, 1.0, two_calls)) * math.prod(size) for steps, size in passes))


def _encoding(size: Size, decoding: PictureCost) -> float:
    """Returns what encoding to a latent of a size takes."""
    return decoding(size) * encoder_work(size) / decoder_work(size)


class StageClock:
    """Tells how much of a stage is done, from what its model calls have evaluated so far.

    `cells` are those of every call where they are known, see `forecast.call_cells`. Else the timestep tells, which
    falls from its first value to nothing.
    """

    def __init__(self, cells: Sequence[int] | None):
        self._cells = cells
        self._call = -1
        self._first_timestep = 1.0
        self._within = 0.0
        self._before = 0.0
        # the host may evaluate conds and unconds one after the other; how often shows at the end of the first call
        self._rounds = 1.0

    def share(self, call: int, timestep: float, cells: float) -> float:
        """Returns the share of the stage that is done before a batch of `cells` cells in call number `call`."""
        if call != self._call:
            self._begin_call(call, timestep)
        done, self._within = self._within, self._within + cells
        if self._cells is None:
            return min(max(1 - timestep / self._first_timestep, 0.0), 1.0)
        here = self._of_call(call)
        total = max(sum(self._cells), 1)
        return min((self._before + min(done / self._rounds, here)) / total, 1.0)

    def _begin_call(self, call: int, timestep: float) -> None:
        if self._call < 0:
            self._first_timestep = max(timestep, 1e-6)
        elif self._cells is not None and self._of_call(self._call):
            self._rounds = max(1.0, self._within / self._of_call(self._call))
        self._call, self._within = call, 0.0
        self._before = float(sum(self._cells[:call])) if self._cells is not None else 0.0

    def _of_call(self, call: int) -> float:
        return float(self._cells[call]) if self._cells is not None and call < len(self._cells) else 0.0
