"""A weighted sample of a picture's blocks that stands for the whole when group-norm statistics are measured.

The statistics of a feature map too large to be held are estimated as a survey would: what is known of every block
(its features in the last map that is held whole) chooses the blocks and sets their weights, so that the sample
reproduces the features' means over the whole picture (calibration, Deville and Saerndal 1992).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib_demofusion.vae_steps import Box

GROUPS = 32
# How much the weights' spread counts against the features' match.
RIDGE = 0.02
# The share of the sample that the most unusual blocks take.
UNUSUAL = 0.25


def block_features(x: Tensor, blocks: list[Box], device: torch.device) -> Tensor:
    """Returns mean, mean square and mean square slope of channel groups in every block, (blocks, features).

    x is (1, C, H, W). Every feature has zero mean and unit spread over the blocks, weighted by their areas.
    """
    found = torch.stack([_features(box.cut(x).to(device)) for box in blocks]).cpu().double()
    areas = torch.tensor([box.area for box in blocks], dtype=torch.double)[:, None]
    found = found - (found * areas).sum(0) / areas.sum()
    spread = ((found**2 * areas).sum(0) / areas.sum()).sqrt()
    return found / spread.clamp_min(1e-12) * (spread > 1e-9)


def _features(x: Tensor) -> Tensor:
    """Returns the features of one block (1, C, h, w), (3 * groups,)."""
    x = x[0].float()
    slopes = [(x.diff(dim=dim) ** 2).sum((1, 2)) / x[0].numel() for dim in (1, 2)]
    channels = torch.stack([x.mean((1, 2)), (x**2).mean((1, 2)), slopes[0] + slopes[1]])  # (3, C)
    groups = GROUPS if channels.shape[1] % GROUPS == 0 else channels.shape[1]
    return channels.reshape(3, groups, -1).mean(2).flatten()


def choose(features: Tensor, areas: Tensor, count: int) -> list[tuple[int, float]]:
    """Returns about `count` blocks' indices, each with the number of blocks of its size that it stands for.

    The most unusual blocks stand for themselves; of the others, ordered by what differs most among them, every n-th
    stands for its neighbours in that order.
    """
    total = len(features)
    if count >= total:
        return [(index, 1.0) for index in range(total)]
    order = torch.argsort((features**2).sum(1), descending=True)
    unusual, usual = order[: int(count * UNUSUAL)], order[int(count * UNUSUAL) :]
    axis = torch.linalg.eigh(features[usual].T @ features[usual])[1][:, -1]
    usual = usual[torch.argsort(features[usual] @ axis)]
    taken = count - len(unusual)
    picks = ((torch.arange(taken) + 0.5) * len(usual) / taken).long()
    chosen = torch.cat([unusual, usual[picks]])
    design = torch.cat([torch.ones(len(unusual)), torch.full((taken,), len(usual) / taken)]).double()
    weights = calibrated(features[chosen], design * areas[chosen])
    return list(zip(chosen.tolist(), (weights / areas[chosen]).tolist()))


def calibrated(features: Tensor, weights: Tensor) -> Tensor:
    """Returns weights near `weights` under which the features' weighted sums are near zero, as over all blocks."""
    weighted = features * weights[:, None]
    gram = features.T @ weighted + RIDGE * weights.sum() * torch.eye(features.shape[1], dtype=features.dtype)
    shift: Tensor = torch.linalg.solve(gram, -weighted.sum(0))
    return weights * (1 + features @ shift).clamp(0.2, 5)
