"""Tests LoRA factors, their file, and the distillation into a consistency model."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from trial import lora
from trial.autoencoder import Autoencoder, AutoencoderConfig
from trial.collage import distill
from trial.collage.model import Captions, make_captions
from trial.collage.train_unet import Batches, Denoiser
from trial.sampling import consistency, lcm_times
from trial.schedule import alphas_cumprod
from trial.small_model import SmallModel

ALPHAS = alphas_cumprod().float()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.block = nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(nn.SiLU(), nn.Conv2d(8, 4, 1))
        self.last = nn.Linear(4, 5)

    def forward(self, x):
        return self.last(self.block(self.first(x)).mean((2, 3)))


@pytest.fixture
def factors() -> tuple[Net, lora.Lora]:
    torch.manual_seed(0)
    net = Net()
    found = lora.Lora(net, 2)
    for up in found.up:
        nn.init.normal_(up, std=0.3)
    return net, found


def test_fresh_factors_change_nothing() -> None:
    net = Net()
    found = lora.Lora(net, 2).weights(net)
    for name, weight in found.items():
        torch.testing.assert_close(weight, dict(net.named_parameters())[name], rtol=0, atol=0)


def test_the_changes_are_exact_and_learn_where_the_network_runs_in_half_precision(factors) -> None:
    net, found = factors
    with torch.autocast("cpu", torch.bfloat16):
        weights = found.weights(net)
        torch.func.functional_call(net, weights, (torch.randn(2, 3, 6, 6),)).square().sum().backward()
    name = found.names[0]
    expected = net.first.weight + (found.up[0] @ found.down[0]).view_as(net.first.weight)
    torch.testing.assert_close(weights[name], expected, rtol=0, atol=0)
    assert all(part.grad is not None and part.grad.any() for part in found.parameters())


def test_a_saved_lora_reproduces_the_merged_weights(factors, tmp_path) -> None:
    net, found = factors
    loaded = copy.deepcopy(net)
    lora.save(found, tmp_path / "lora.safetensors")
    lora.apply(loaded, tmp_path / "lora.safetensors")
    x = torch.randn(2, 3, 6, 6)
    merged = torch.func.functional_call(net, found.weights(net), (x,))
    torch.testing.assert_close(loaded(x), merged, rtol=2e-2, atol=2e-2)
    assert not torch.allclose(loaded(x), net(x), atol=1e-2)
    with pytest.raises(KeyError):
        lora.apply(nn.Sequential(nn.Linear(3, 3)), tmp_path / "lora.safetensors")


def test_the_exported_lora_is_in_half_precision(factors, tmp_path) -> None:
    packed, full = tmp_path / "packed.safetensors", tmp_path / "full.safetensors"
    lora.save(factors[1], packed)
    lora.write_full(packed, full)
    expected = factors[1].tensors()
    written = load_file(str(full))
    assert written.keys() == expected.keys()
    for name, tensor in written.items():
        assert tensor.dtype == torch.float16
        torch.testing.assert_close(tensor.float(), expected[name].float(), rtol=1e-2, atol=1e-2)


def test_names_and_shapes_are_those_that_webuis_read(factors) -> None:
    tensors = factors[1].tensors()
    assert tensors["lora_unet_first.lora_down.weight"].shape == (2, 3, 3, 3)
    assert tensors["lora_unet_first.lora_up.weight"].shape == (8, 2, 1, 1)
    assert tensors["lora_unet_last.lora_down.weight"].shape == (2, 4)
    assert tensors["lora_unet_block_1.alpha"] == 2


def test_a_consistency_model_returns_a_clean_latent_unchanged() -> None:
    torch.manual_seed(0)
    clean, eps = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4)
    t = torch.tensor([999, 259])
    power = ALPHAS[t][:, None, None, None]
    noisy = power.sqrt() * clean + (1 - power).sqrt() * eps
    torch.testing.assert_close(consistency(noisy, eps, t, ALPHAS), clean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(consistency(clean, eps, torch.tensor([0]), ALPHAS), clean, rtol=0, atol=0)


def test_timesteps_are_on_the_grid_and_fall_from_the_noisiest() -> None:
    for steps in (1, 4, 8, 50):
        times = lcm_times(steps)
        assert times[0] == 999
        assert len(times) == steps
        assert times == sorted(set(times), reverse=True)
        assert all((t + 1) % 20 == 0 for t in times)
    assert distill.on_grid(torch.tensor([0, 19, 20, 980, 999])).tolist() == [19, 19, 39, 999, 999]


def test_a_step_of_the_teacher_gives_the_same_image_with_less_noise() -> None:
    torch.manual_seed(0)
    clean, eps = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4)
    batches = Batches({}, Captions(torch.zeros(1, 4, 77), torch.zeros(1)), 2, 0)
    now, after = torch.tensor([999, 39]), torch.tensor([979, 19])
    x, later = (batches.noisy(clean, eps, t) for t in (now, after))
    torch.testing.assert_close(distill.stepped(x, eps, now, after, ALPHAS), later, rtol=1e-3, atol=1e-3)


def test_the_student_learns_a_guided_step_of_the_teacher() -> None:
    """On one batch, the distance from the targets decreases and the original stays unchanged."""
    torch.manual_seed(0)
    original = Denoiser(49408)
    with torch.no_grad():
        for parameter in original.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    teacher = SmallModel(original.unet, Autoencoder(AutoencoderConfig()), original.text, 0.18215, ALPHAS)
    teacher.requires_grad_(False)
    before = copy.deepcopy(teacher.unet.state_dict())
    captions = make_captions()
    views = {f"{kind}_x": torch.randn(4, 4, 16, 16) for kind in ("whole", "zoomed")}
    labels = {f"{kind}_label": torch.zeros(4, dtype=torch.long) for kind in ("whole", "zoomed")}
    found = lora.Lora(teacher.unet, 4)
    distillation = distill.Distillation(teacher, found, Batches({**views, **labels}, captions, 2, 0), 3.0)
    optimiser = torch.optim.Adam(found.parameters(), lr=3e-3)
    batch, losses = distillation.targets(0), []
    for _ in range(8):
        loss = distillation.loss(*batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    for name, weight in teacher.unet.state_dict().items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=0)
