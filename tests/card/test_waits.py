"""Tests how often the CPU waits for the card. After each wait, a real card is idle until it gets new work."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from card.host import HALF, CardWebui
from card.simulated import SimulatedCard, Wait
from card.test_jobs import PRESETS, picture

from lib_demofusion.host import stage_loop
from lib_demofusion.host.backends.webui_denoiser import FusedModel
from lib_demofusion.method.stage import StageRun

OTHER_WAITS = 6
"""Allowed number of waits in a stage outside of model calls, such as for the noise, the schedule and the NaN check."""


class Watched:
    """Records the waits that the extension causes in a job with one stage.

    `calls` contains the number of waits in each call of StageRun.before_call. `fused` contains the waits in the
    evaluation of views. `stage` contains all waits of the stage.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, card: SimulatedCard):
        self.calls: list[int] = []
        self.fused: list[Wait] = []
        self.stage: list[Wait] = []
        self._card = card
        before_call, fused, run_stage = StageRun.before_call, FusedModel.__call__, stage_loop.run_stage

        def watched_call(run: StageRun, x: Any, level: Any) -> None:
            before = len(self._own())
            before_call(run, x, level)
            self.calls.append(len(self._own()) - before)

        def watched_fused(model: FusedModel, *args: Any, **kwargs: Any) -> Any:
            before = len(self._own())
            made = fused(model, *args, **kwargs)
            self.fused += self._own()[before:]
            return made

        def watched_stage(*args: Any) -> Any:
            before = len(self._own())
            made = run_stage(*args)
            self.stage += self._own()[before:]
            return made

        monkeypatch.setattr(StageRun, "before_call", watched_call)
        monkeypatch.setattr(FusedModel, "__call__", watched_fused)
        monkeypatch.setattr(stage_loop, "run_stage", watched_stage)

    def _own(self) -> list[Wait]:
        return [wait for wait in self._card.waits if wait.ours]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, card: SimulatedCard) -> Watched:
    return Watched(monkeypatch, card)


SAMPLERS = ("Euler", "Euler a", "DPM++ 2M", "DPM++ SDE", "DPM2 a", "Heun", "DDIM")


@pytest.mark.parametrize(
    ("preset", "sampler"), [*((preset, "Euler") for preset in PRESETS), *(("Balanced", name) for name in SAMPLERS[1:])]
)
def test_before_call_waits_for_the_card_at_most_once_and_the_evaluation_of_views_never(
    webui: CardWebui, card: SimulatedCard, watched: Watched, preset: str, sampler: str
) -> None:
    settings = {"preset": preset, "scale": 2, "view_batch": 1}
    picture(webui.job(settings, card, HALF, sampler_name=sampler, steps=8))
    assert len(watched.calls) >= 2
    assert max(watched.calls) <= 1
    assert watched.fused == []
    places = Counter(f"{wait.kind}: {wait.place}" for wait in watched.stage)
    assert len(watched.stage) <= len(watched.calls) + OTHER_WAITS, places


class Embedder(torch.nn.Module):
    """Embeds pairs of numbers, similarly to the embedders of SDXL."""

    outdim = 2

    def __init__(self, key: str):
        super().__init__()
        self.input_key = key

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.sin(numbers), torch.cos(numbers)], 1)[:, [0, 2, 1, 3]]


def test_the_vectors_of_sdxl_cause_no_waits_after_the_first_batch(card: SimulatedCard) -> None:
    from lib_demofusion.method.conditioning import CROP, SIZES, Frame, SizeVectors
    from lib_demofusion.method.views import local_views

    embedders = [Embedder(key) for key in (SIZES[0], CROP, SIZES[1])]
    views = local_views((32, 32), (16, 16), (8, 8))
    with torch.no_grad(), card:
        vectors = SizeVectors(embedders, Frame((256, 256)))
        vector = torch.zeros(2, 20, device="cuda", dtype=torch.float16)
        vectors.for_views(vector, views[:2])
        before = len(card.waits)
        for view in views:
            vectors.for_views(vector, [view])
        assert card.waits[before:] == []
