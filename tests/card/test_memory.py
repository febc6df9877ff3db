"""Tests jobs on a simulated card with little memory.

Decoding, encoding and sampling run in smaller parts if they do not fit. The image must stay nearly the same.
"""

from __future__ import annotations

from typing import Any

import pytest
from card.host import HALF, HALF_BUT_VAE, CardWebui, psnr
from card.simulated import SimulatedCard
from card.test_jobs import LEAST, on_the_cpu, picture

from lib_demofusion.method.stage import StageRun

MIB = 1 << 20


@pytest.mark.parametrize("memory", [40, 12, 6])
def test_the_preset_balanced_runs_with_little_memory(webui: CardWebui, memory: int) -> None:
    """`memory` is the memory of the card in MiB.

    The autoencoder runs in single precision, as the autoencoder of SDXL often must. With 40 MiB, it decodes the whole
    image at once. With 12 or 6 MiB, it runs in tiles.
    """
    card = SimulatedCard(memory=memory * MIB)
    made = picture(webui.job({"preset": "Balanced", "scale": 4}, card, HALF_BUT_VAE))
    assert card.peak <= memory * MIB
    # without tiles, the autoencoder needs 13 MiB
    assert (card.peak > 12 * MIB) == (memory == 40)
    assert psnr(made, on_the_cpu(webui, "Balanced", 4, "txt2img")) >= LEAST


@pytest.mark.parametrize("allocation", [0, 5, 20])
@pytest.mark.parametrize("views", [0, 1, 4])
def test_sampling_continues_with_smaller_batches_if_memory_runs_out(
    webui: CardWebui, card: SimulatedCard, monkeypatch: pytest.MonkeyPatch, views: int, allocation: int
) -> None:
    """In the second model call of the stage, one allocation fails while the model evaluates a batch of views.

    `allocation` is the number of allocations in this batch that succeed before that one. `views` is the value of
    `view_batch`: the number of views in a batch, or 0 for the value in Settings, which is automatic here.
    """
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
    assert psnr(made, on_the_cpu(webui, "Balanced", 2, "txt2img")) >= LEAST
