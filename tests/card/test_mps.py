"""Tests jobs on a simulated Apple GPU.

An Apple GPU does not support double precision, adaptive pooling with areas of different sizes, or very large tensors.
The webui does not use autocast on it.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from card.host import HALF, UPCAST, CardWebui, Precision, psnr
from card.simulated import SimulatedCard
from card.test_jobs import LEAST, LEAST_WITH_HALF_VAE, PRESETS, least_with_kept_colors, on_the_cpu, picture
from card.test_vae import FreeMemory

from lib_demofusion.host.images import vae
from lib_demofusion.method.filters import LOW_BAND, match_low_band


@pytest.fixture
def card() -> SimulatedCard:
    return SimulatedCard("mps")


@pytest.fixture
def free_memory(monkeypatch: pytest.MonkeyPatch) -> FreeMemory:
    return FreeMemory(monkeypatch)


@pytest.mark.parametrize("scale", [2, 1.625])
@pytest.mark.parametrize("preset", PRESETS)
def test_the_gpu_makes_nearly_the_same_image_as_the_cpu(
    webui: CardWebui, card: SimulatedCard, preset: str, scale: float
) -> None:
    """The job runs with --upcast-sampling, because the webui's start script on a Mac sets this option."""
    made = picture(webui.job({"preset": preset, "scale": scale}, card, UPCAST))
    assert psnr(made, on_the_cpu(webui, preset, scale, "txt2img")) >= LEAST_WITH_HALF_VAE.get(preset, LEAST)


@pytest.mark.parametrize("sampler", ["DDIM", "Euler a", "DPM++ 2M"])
def test_other_samplers_make_nearly_the_same_image_as_the_cpu(
    webui: CardWebui, card: SimulatedCard, sampler: str
) -> None:
    settings = {"preset": "Paper", "scale": 2, "keep_colors": True}
    plain = picture(webui.job(settings, sampler_name=sampler))
    least = least_with_kept_colors(webui, card, UPCAST, sampler)
    assert psnr(picture(webui.job(settings, card, UPCAST, sampler_name=sampler)), plain) >= least


@pytest.mark.parametrize("size", [(16, 16), (13, 18), (7, 5), (3, 2)])
def test_match_low_band_gives_the_result_of_adaptive_pooling(size: tuple[int, int]) -> None:
    """match_low_band computes the means itself, because adaptive pooling can fail on an Apple GPU."""
    x, base = torch.rand(2, 4, *size), torch.rand(2, 4, 9, 7)
    low, wanted = (F.adaptive_avg_pool2d(latent, LOW_BAND) for latent in (x, base))
    std, mean = torch.std_mean(low, dim=(2, 3), keepdim=True)
    wanted_std, wanted_mean = torch.std_mean(wanted, dim=(2, 3), keepdim=True)
    moved = (low - mean) * (wanted_std / std) + wanted_mean
    expected = x + F.interpolate(moved - low, size=size, mode="bicubic", align_corners=False)
    torch.testing.assert_close(match_low_band(x, base), expected)


@pytest.mark.parametrize("limit", [1 << 32, 1_500_000])
@pytest.mark.parametrize("precision", [UPCAST, HALF], ids=["upcast", "half"])
def test_no_tensor_exceeds_the_limit_of_the_gpu(
    webui: CardWebui,
    card: SimulatedCard,
    monkeypatch: pytest.MonkeyPatch,
    free_memory: FreeMemory,
    precision: Precision,
    limit: int,
) -> None:
    """Decodes a latent with two limits. With the lower limit, decoding must run in tiles although memory is free.

    On a real Apple GPU, a tensor above the limit ends the process.
    """
    card.largest = limit
    monkeypatch.setattr(vae, "LARGEST_TENSOR", {"mps": limit}, raising=False)
    with torch.no_grad(), card:
        moved = webui.model.on(card, precision.unet, precision.vae).vae
        z = torch.rand(1, 4, 32, 32).to(precision.vae)
        with vae.in_parts(SimpleNamespace(first_stage_model=moved)):
            made = moved.decoder(z.to("mps")).cpu()
    assert free_memory.storages == ([] if limit > 1 << 30 else ["memory"])
    torch.testing.assert_close(made.float(), webui.model.vae.decoder(z.float()), rtol=0.02, atol=0.02)


def test_decoding_is_refused_if_a_tensor_exceeds_the_limit_even_in_the_smallest_tiles(
    webui: CardWebui, card: SimulatedCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vae, "LARGEST_TENSOR", {"mps": 1000}, raising=False)
    with torch.no_grad(), card:
        moved = webui.model.on(card, torch.float32, torch.float32).vae
        with vae.in_parts(SimpleNamespace(first_stage_model=moved)), pytest.raises(MemoryError, match="1000 bytes"):
            moved.decoder(torch.rand(1, 4, 16, 16).to("mps"))
