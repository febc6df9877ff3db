"""Tests parts of the training of the collages' model: saved states continue, and the losses react correctly."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
import torch

from trial.autoencoder import Autoencoder
from trial.collage import make_latents, measure, train_decoder, train_unet
from trial.collage.content import ground_kinds
from trial.collage.model import AUTOENCODER, TEMPLATE_SHARES, TEMPLATES, make_captions
from trial.collage.train_unet import Denoiser
from trial.small_model import SmallModel
from trial.text import tokenize
from trial.training import Progress, Trainee, rate_at


def test_captions_are_in_the_order_of_the_labels():
    captions = make_captions()
    assert captions.ids.shape == (384, len(TEMPLATES) + 1, 77)
    assert len(TEMPLATE_SHARES) == len(TEMPLATES)
    assert sum(TEMPLATE_SHARES) == pytest.approx(1.0)
    for subject, ground in ((3, 5), (23, 15)):
        ids = captions.used[captions.ids[subject * 16 + ground, 0]]
        assert (ids == tokenize([measure.prompt((subject, ground))])[0]).all()


def test_sizes_stay_within_twelve_million_parameters():
    denoiser, vae = Denoiser(49408), Autoencoder(AUTOENCODER)
    assert sum(p.numel() for module in (denoiser, vae) for p in module.parameters()) <= 12_000_000


def test_the_learning_rate_rises_stays_and_falls():
    args = argparse.Namespace(steps=1000, decay=200, rate=1.0)
    rates = [rate_at(step, args, train_unet.WARM_UP) for step in (0, 99, 199, 500, 800, 900, 999)]
    assert rates == [pytest.approx(r, abs=1e-6) for r in (0.02, 0.5, 1.0, 1.0, 1.0, 0.5, 0.02)]


def test_averaged_texture_is_detected_by_strength_not_position():
    torch.manual_seed(0)
    grain, other = (torch.randn(2, 3, 64, 64) for _ in range(2))
    weak = (0.5 * grain).requires_grad_(True)
    assert float(train_decoder.texture_loss(grain, grain)) == 0.0
    assert float(train_decoder.texture_loss(grain, other)) < 0.1
    loss = train_decoder.texture_loss(weak, grain)
    assert loss.item() == pytest.approx(0.693, abs=0.02)
    loss.backward()
    # a stronger grain lowers the loss
    assert float((weak.grad * grain).sum()) < 0


def test_the_discriminator_learns_and_gives_the_decoder_a_gradient():
    torch.manual_seed(0)
    discriminator = train_decoder.Discriminator(8)
    optimiser = torch.optim.AdamW(discriminator.parameters(), lr=2e-3)
    judges = train_decoder.Judges(
        torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()), discriminator, optimiser
    )
    target = torch.rand(4, 3, 32, 32) * 2 - 1
    flat = torch.zeros_like(target, requires_grad=True)
    for _ in range(30):
        loss = train_decoder.judged_loss(judges, flat, target)
    assert discriminator(target).mean() > discriminator(flat).mean() + 0.5
    loss.backward()
    assert flat.grad.abs().sum() > 0
    assert all(p.requires_grad for p in discriminator.parameters())


def test_training_can_continue_from_a_finished_model(tmp_path):
    captions = make_captions()
    full = Denoiser(49408)
    model = SmallModel(full.unet, Autoencoder(AUTOENCODER), full.text, 0.18215, torch.ones(1000))
    make_latents.write_states(model, tmp_path)
    trainee = Trainee(Denoiser(len(captions.used)), tmp_path / "unet.pt", 0.998)
    assert trainee.restore()
    ids = captions.ids[7, 0]
    with torch.no_grad():
        expected = full.text(captions.used[ids][None])
        torch.testing.assert_close(trainee.average.text(ids[None]), expected)
    decoder = Trainee(train_decoder.decoder_only(Autoencoder(AUTOENCODER)), tmp_path / "autoencoder.pt", 0.998)
    assert decoder.restore()
    torch.testing.assert_close(decoder.average.state_dict(), model.vae.state_dict())


def test_unknown_words_get_embeddings_of_the_usual_length():
    torch.manual_seed(0)
    table = 0.5 * torch.randn(20, 32)
    table[3] *= 0.04
    found = make_latents.lengthened(table)
    assert torch.equal(found[:3], table[:3])
    assert torch.equal(found[4:], table[4:])
    assert found[3].norm() == pytest.approx(table.norm(dim=1).median().item())
    assert torch.nn.functional.cosine_similarity(found[3], table[3], 0) == pytest.approx(1.0)


def test_the_spectrum_of_a_blurred_picture_falls_short_where_it_should():
    rng = np.random.default_rng(0)
    views = rng.random((4, 128, 128, 3)).astype(np.float32)
    blurred = (views + np.roll(views, 1, 1) + np.roll(views, 1, 2) + np.roll(views, (1, 1), (1, 2))) / 4
    ratio = np.sqrt(measure.ring_power(blurred) / measure.ring_power(views))
    frequency = np.fft.fftfreq(128)
    down, across = frequency[:, None], frequency[None]
    ring = (np.hypot(down, across) * 2 * measure.RINGS).astype(int)
    passed = (np.cos(np.pi * down) * np.cos(np.pi * across)) ** 2  # the mean of two pixels along each axis
    expected = [np.sqrt(passed[ring == number].mean()) for number in range(measure.RINGS)]
    np.testing.assert_allclose(ratio[:12], expected[:12], atol=0.05)


@pytest.mark.parametrize("kind", ["collages", "flat"])
def test_sixty_four_prompts_name_every_subject_and_ground(kind):
    labels = measure.labels_for(64, kind)
    assert len({subject for subject, _ in labels}) == 24
    assert {ground for _, ground in labels} == set(ground_kinds()[kind])
    assert len(set(labels)) == 64


def test_the_drift_of_a_flat_ground_is_measured_outside_the_subject():
    views = np.full((2, 128, 128, 3), (0.1, 0.4, 0.8), np.float32)
    views[:, 40:70, 40:70] = 0.5
    restored = views + np.array([0.03, 0.0, -0.03], np.float32)
    restored[:, 35:75, 35:75] = 0.0
    assert measure.color_drift(restored, views) == pytest.approx(0.02 * 255, abs=0.01)


def test_an_interrupted_training_continues_with_moving_averages(tmp_path):
    args = argparse.Namespace(steps=60, save_every=20)
    seen = []
    for steps_before_cut in (30, 60):
        trainee = Trainee(torch.nn.Linear(1, 1), tmp_path / "state.pt", decay=0.9)
        trainee.restore()
        progress = Progress(range(trainee.step, args.steps), trainee, args)
        for step in progress:
            if step == steps_before_cut:
                break
            seen.append(step)
            loss = trainee.module(torch.ones(1, 1)).square().sum()
            trainee.update(loss, 1e-3)
            # a squared error of 0.04 for images in -1..1 is a PSNR of 20 dB
            progress.after_step(loss, torch.tensor(0.04))
    assert seen == [*range(30), *range(20, 60)]
    assert progress.figures()["psnr"] == "20.00"
    assert float(progress.figures()["loss"]) == pytest.approx(loss.item(), rel=0.5)
