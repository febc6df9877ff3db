"""Tests parts of the training of the collages' model: its captions and words, and that saved states continue."""

from __future__ import annotations

import argparse

import pytest
import torch

from trial import training
from trial.collage import train_unet
from trial.collage.content import caption, captions
from trial.collage.model import TEMPLATE_SHARES, TEMPLATES, make_captions
from trial.text import tokenize
from trial.training import Trainee, rate_at, train


def test_captions_are_in_the_order_of_the_labels():
    made = make_captions()
    assert made.ids.shape == (384, len(TEMPLATES) + 1, 77)
    assert len(TEMPLATE_SHARES) == len(TEMPLATES)
    assert sum(TEMPLATE_SHARES) == pytest.approx(1.0)
    subjects, grounds = captions()
    for subject, ground in ((3, 5), (23, 15)):
        ids = made.used[made.ids[subject * 16 + ground, 0]]
        assert (ids == tokenize([caption(subjects[subject], grounds[ground])])[0]).all()


def test_the_learning_rate_rises_stays_and_falls():
    args = argparse.Namespace(steps=1000, decay=200, rate=1.0)
    rates = [rate_at(step, args) for step in (0, 49, 99, 500, 800, 900, 999)]
    assert rates == [pytest.approx(r, abs=1e-6) for r in (0.02, 0.5, 1.0, 1.0, 1.0, 0.5, 0.02)]


def test_unknown_words_get_embeddings_of_the_usual_length():
    torch.manual_seed(0)
    table = 0.5 * torch.randn(20, 32)
    table[3] *= 0.04
    found = train_unet.lengthened(table)
    assert torch.equal(found[:3], table[:3])
    assert torch.equal(found[4:], table[4:])
    assert found[3].norm() == pytest.approx(table.norm(dim=1).median().item())
    assert torch.nn.functional.cosine_similarity(found[3], table[3], 0) == pytest.approx(1.0)


def test_a_training_that_was_cut_off_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_EVERY", 20)
    args = argparse.Namespace(steps=60, decay=10, rate=1e-2, device="cpu", float32=True)
    seen = []

    def trained(state: str, cut: int | None = None) -> Trainee:
        torch.manual_seed(0)
        trainee = Trainee(torch.nn.Linear(1, 1), tmp_path / state, decay=0.9)

        def loss_of(step: int) -> torch.Tensor:
            if step == cut:
                raise KeyboardInterrupt
            seen.append(step)
            return trainee.module(torch.full((1, 1), 1.0 + step)).square().sum()

        train(trainee, loss_of, args)
        return trainee

    with pytest.raises(KeyboardInterrupt):
        trained("cut.pt", cut=30)
    interrupted = trained("cut.pt")
    assert seen == [*range(30), *range(20, 60)]
    expected = trained("whole.pt").average.state_dict()
    torch.testing.assert_close(interrupted.average.state_dict(), expected)
    torch.testing.assert_close(training.averaged(tmp_path / "cut.pt"), expected)
