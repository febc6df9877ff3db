"""Tests jobs on a simulated card with little memory: large steps run in parts, and the image stays the same."""

from __future__ import annotations

from typing import Any

import pytest
from card.host import HALF, HALF_BUT_VAE, CardWebui, psnr
from card.simulated import SimulatedCard
from card.test_jobs import LIKE, on_processor, picture

from lib_demofusion.method.stage import StageRun

MIB = 1 << 20


@pytest.mark.parametrize("memory", [40, 12, 6])
def test_the_default_preset_runs_if_the_autoencoder_does_not_fit(webui: CardWebui, memory: int) -> None:
    """The autoencoder runs in single precision, as for SDXL. With 40 MiB it runs in one piece, with less in parts."""
    card = SimulatedCard(memory=memory * MIB)
    made = picture(webui.job({"preset": "Balanced", "scale": 4}, card, HALF_BUT_VAE))
    assert card.peak <= memory * MIB
    # in one piece, the autoencoder needs 13 MiB
    assert (card.peak > 12 * MIB) == (memory == 40)
    assert psnr(made, on_processor(webui, "Balanced", 4, "txt2img")) >= LIKE


@pytest.mark.parametrize("allocation", [0, 5, 20])
@pytest.mark.parametrize("views", [0, 1, 4])
def test_sampling_continues_with_fewer_views_if_memory_runs_out(
    webui: CardWebui, card: SimulatedCard, monkeypatch: pytest.MonkeyPatch, views: int, allocation: int
) -> None:
    """One allocation fails. The test runs for different allocations of a view batch."""
    denoise = StageRun.denoise

    def failing(run: StageRun, evaluate: Any, *args: Any) -> Any:
        def failing_evaluate(*inner: Any) -> Any:
            if run.call == 1:
                card.fail_in = allocation if not failed else None
                failed.append(True)
            made = evaluate(*inner)
            card.fail_in = None
            return made

        return denoise(run, failing_evaluate, *args)

    failed: list[bool] = []
    monkeypatch.setattr(StageRun, "denoise", failing)
    made = picture(webui.job({"preset": "Balanced", "scale": 2, "view_batch": views}, card, HALF))
    assert card.failures == 1
    assert psnr(made, on_processor(webui, "Balanced", 2, "txt2img")) >= LIKE
