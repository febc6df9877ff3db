"""Defines the sizes of the networks and the captions that they learn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trial.collage.content import captions
from trial.text import TextConfig, tokenize
from trial.unet import UNetConfig

TEXT = TextConfig(hidden_size=32, intermediate_size=96, projection_dim=32)
UNET = UNetConfig(channel_mult=(1, 2, 3), attention_resolutions=(2,), context_dim=32)

TEMPLATES = ("{subject} on {ground}", "a photo of {subject} on {ground}, highly detailed", "{subject}")
TEMPLATE_SHARES = (0.82, 0.1, 0.08)


@dataclass(frozen=True)
class Captions:
    """Ids (labels, templates + 1, 77) as indices into `used`, the few used words of the vocabulary."""

    ids: Tensor
    used: Tensor


def make_captions() -> Captions:
    """Returns the captions of all (subject, ground). The empty caption is the last.

    The table contains only the words of the captions, so the optimiser does not store three million unused numbers.
    """
    subjects, grounds = captions()
    rows = [[t.format(subject=s, ground=g) for t in TEMPLATES] + [""] for s in subjects for g in grounds]
    ids = torch.stack([tokenize(row) for row in rows])
    used = torch.unique(ids)
    return Captions(torch.searchsorted(used, ids), used)
