"""Tests that stages compute in single precision, in every precision of the webui's networks.

The code under test is mostly in lib_demofusion/host/sampling.
"""

from __future__ import annotations

from typing import Any

import k_diffusion.external
import pytest
import torch
from card.host import HALF, HALF_BUT_VAE, SINGLE, UPCAST, CardWebui, Precision, psnr
from card.simulated import SimulatedCard
from card.test_jobs import LEAST, picture, tab
from modules import sd_samplers_kdiffusion, shared

from lib_demofusion.method import stages
from lib_demofusion.method.filters import gaussian_blur, smooth
from lib_demofusion.method.stage import StageRun

PRECISIONS = {"single": SINGLE, "half": HALF, "half but VAE": HALF_BUT_VAE, "upcast": UPCAST}


@pytest.fixture
def types(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[torch.dtype]]:
    """Returns a dict that collects the dtypes of seven kinds of tensors in the stages, by name (such as "anchor")."""
    found: dict[str, set[torch.dtype]] = {}

    def note(**tensors: Any) -> None:
        for name, tensor in tensors.items():
            found.setdefault(name, set()).add(tensor.dtype)

    before_call, denoise, finish_stage = StageRun.before_call, StageRun.denoise, stages.finish_stage

    def noted_call(self: StageRun, x: Any, level: Any) -> None:
        note(anchor=self.anchor, noise=self.noise, x=x, level=level)
        before_call(self, x, level)

    def noted_denoise(self: StageRun, evaluate: Any, x: Any, *args: Any) -> Any:
        note(rows=x)
        return denoise(self, evaluate, x, *args)

    def noted_end(x: Any, base: Any, colours: Any = None) -> Any:
        made = finish_stage(x, base, colours)
        note(base=base, result=made)
        return made

    monkeypatch.setattr(StageRun, "before_call", noted_call)
    monkeypatch.setattr(StageRun, "denoise", noted_denoise)
    monkeypatch.setattr(stages, "finish_stage", noted_end)
    return found


@pytest.mark.parametrize("name", ["txt2img", "img2img"])
@pytest.mark.parametrize("preset", ["Paper", "Balanced"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_all_tensors_outside_the_networks_are_in_single_precision(
    webui: CardWebui,
    card: SimulatedCard,
    types: dict[str, set[torch.dtype]],
    precision: str,
    preset: str,
    name: str,
) -> None:
    picture(webui.job({"preset": preset, "scale": 2}, card, PRECISIONS[precision], steps=2, **tab(name)))
    # the fixture has seen a tensor of each of its seven names
    assert len(types) == 7
    assert {kind for kinds in types.values() for kind in kinds} == {torch.float32}


@pytest.mark.parametrize("blur", [lambda x: gaussian_blur(x, 3, 1.5), lambda x: smooth(x, 1.5)])
def test_blurs_are_not_affected_by_autocast(card: SimulatedCard, blur: Any) -> None:
    x = torch.randn(1, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), card, torch.autocast("cuda"):
        assert torch.allclose(blur(x.cuda()).cpu(), blur(x), atol=1e-6)


def test_a_blur_is_not_affected_by_autocast_on_the_cpu() -> None:
    x = torch.randn(1, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = gaussian_blur(x, 3, 1.5)
    assert torch.equal(under, gaussian_blur(x, 3, 1.5))


ZERO_SNR = 4.8973451890853435e-08
"""The last value of alpha-bar in a zero terminal SNR schedule of the webui.

Source: modules/sd_models.py, rescale_zero_terminal_snr_abar.
"""


@pytest.fixture
def zero_terminal_snr(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the samplers use the model's output as v, with a schedule that ends with almost no signal (sigma 4519)."""

    def inner_model(self: Any) -> Any:
        if self.model_wrap is None:
            model = shared.sd_model
            model.alphas_cumprod = rescaled(model.alphas_cumprod)
            self.model_wrap = k_diffusion.external.CompVisVDenoiser(model, quantize=False)
        return self.model_wrap

    monkeypatch.setattr(sd_samplers_kdiffusion.CFGDenoiserKDiffusion, "inner_model", property(inner_model))


def rescaled(alphas: torch.Tensor) -> torch.Tensor:
    """Rescales alpha-bar to a zero terminal SNR, and returns the result.

    Source: arXiv 2305.08891, algorithm 1. Like in the webui, the last value is ZERO_SNR and not 0.
    """
    roots = alphas.sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    found = ((roots - last) * first / (first - last)).square()
    found[-1] = ZERO_SNR
    return found


@pytest.mark.usefixtures("zero_terminal_snr")
@pytest.mark.parametrize("name", ["txt2img", "img2img"])
@pytest.mark.parametrize("precision", [SINGLE, HALF], ids=["single", "half"])
def test_with_zero_terminal_snr_the_preset_paper_gives_nearly_the_same_image_as_on_the_cpu(
    webui: CardWebui, card: SimulatedCard, precision: Precision, name: str
) -> None:
    settings = {"preset": "Paper", "scale": 2}
    plain = picture(webui.job(settings, **tab(name)))
    assert psnr(picture(webui.job(settings, card, precision, **tab(name))), plain) >= LEAST
