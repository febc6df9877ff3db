"""Counts the tensor operations that DemoFusion adds to a model call. On a GPU, every operation launches a kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lib_demofusion.method.batching import ViewBatches
from lib_demofusion.method.plan import make_plan
from lib_demofusion.method.residual import VarianceExploding
from lib_demofusion.method.sampler_steps import StepDetector
from lib_demofusion.method.stage import SamplerTraits, StageRun
from lib_demofusion.method.views import View
from lib_demofusion.settings.reading import parse_settings

VIEWS_OF_TENSORS = {"slice", "alias", "view", "_unsafe_view", "expand", "select", "unsqueeze", "split", "detach", "t"}
"""Operations that only create a view of a tensor, so they launch no kernel."""

MAX_PER_CALL = 40
"""The maximum number of operations per model call that do not belong to a single view or batch.

These operations compute the blur and its statistics, the skip residual and the jitter. They also allocate the sum of
the predictions, and divide this sum by the sum of the weights.
"""


class Operations(TorchDispatchMode):
    """Counts the operations that compute something, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name not in VIEWS_OF_TENSORS:
            self.counted[name] += 1
        return func(*args, **(kwargs or {}))


class Stage:
    """The stage that enlarges a base image of 64 x 64 cells by 4.

    The tiles overlap enough for jitter. The model returns its input, so it adds no operations.
    """

    def __init__(self, timestep: float, views: int = 4, **settings: Any):
        tiles = {"tile_size": 0, "overlap": 0.35}
        values = parse_settings({"enabled": True, "scale": 4, "preset": "Balanced", **tiles, **settings})
        self.plan = make_plan(values, (64, 64)).stages[-1]
        self.x = torch.randn(1, 4, *self.plan.size)
        space = VarianceExploding(lambda level: torch.tensor(timestep))
        self.run = StageRun(
            self.plan, values, self.x.clone(), torch.randn_like(self.x), SamplerTraits(space, StepDetector())
        )
        self.batches = ViewBatches(views)
        self.seen: list[View] = []

    def call(self, denoises: int = 1) -> Counter[str]:
        """Makes a model call with cond and uncond. Returns how often each operation runs.

        `denoises` is the number of times that the host calls `StageRun.denoise` in this model call.
        """
        with Operations() as operations:
            self.run.before_call(self.x, torch.tensor(1.0))
            self.seen.clear()
            for _ in range(denoises):
                self.run.denoise(self.evaluate, torch.cat([self.x, self.x]), 1.0, self.batches, 2)
        return operations.counted

    def evaluate(self, crops: Tensor, views: Sequence[View], rows: slice) -> Tensor:
        self.seen += views
        return crops


TIMESTEPS = {"dilated views alone": 950.0, "both": 500.0, "local views alone": 100.0}


@pytest.mark.parametrize("timestep", TIMESTEPS.values(), ids=TIMESTEPS)
@pytest.mark.parametrize("jitter", [True, False])
@pytest.mark.parametrize("feather", [0.0, 0.25])
def test_a_model_call_needs_few_operations_per_view(timestep: float, jitter: bool, feather: float) -> None:
    """Each view needs one addition to the sum of predictions. Each batch needs one concatenation.

    With jitter, each local view also needs one addition to the sum of weights.
    """
    stage = Stage(timestep, skip_views="0.1,0.1", jitter=jitter, feather=feather)
    stage.call()
    counted = stage.call()
    views, batches = len(stage.seen), -(-len(stage.seen) // 4) + 1
    assert views >= 16
    assert counted.total() <= (2 if jitter else 1) * views + batches + MAX_PER_CALL


@pytest.mark.parametrize("jitter", [True, False])
def test_the_weights_inside_a_view_are_computed_once_per_stage(jitter: bool) -> None:
    stage = Stage(100.0, jitter=jitter)
    first, second = stage.call(), stage.call()
    # the weights inside a view are the product of two ramps, each computed with one arange and one minimum
    assert (first["arange"], second["arange"]) == (2, 0)
    assert (first["minimum"], second["minimum"]) == (2, 0)
    views = stage.plan.local_count
    assert first["add_"] >= views
    assert (second["add_"] >= views) == jitter


def test_several_predictions_of_a_call_share_the_sum_of_weights() -> None:
    """The webui may evaluate cond and uncond one after the other. Both use the same views with the same weights."""
    stage = Stage(100.0, jitter=True)
    stage.call()
    once, thrice = stage.call(), stage.call(denoises=3)
    assert once["masked_fill_"] == thrice["masked_fill_"] == 1


def test_cached_tensors_do_not_change_the_prediction() -> None:
    """The third prediction of a stage must not depend on the tensors that the first two predictions cached."""
    stage, fresh = Stage(500.0, skip_views="0,0.1"), Stage(500.0, skip_views="0,0.1")
    fresh.x = stage.x.clone()
    for _ in range(3):
        stage.run.before_call(stage.x, torch.tensor(1.0))
        third = stage.run.denoise(stage.evaluate, stage.x, 1.0, stage.batches)
    fresh.run.anchor, fresh.run.noise = stage.run.anchor, stage.run.noise
    for _ in range(3):
        fresh.run.before_call(fresh.x, torch.tensor(1.0))
    torch.testing.assert_close(fresh.run.denoise(fresh.evaluate, stage.x, 1.0, fresh.batches), third, rtol=0, atol=0)
