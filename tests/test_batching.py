"""Tests batches of views if memory runs out at any point, and the memory that fusion itself allocates."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from fusing import evaluations, fuse
from torch import Tensor

from bench.peak_bytes import PeakBytes
from lib_demofusion.method.batching import MOST_VIEWS, ViewBatches
from lib_demofusion.method.filters import blur_for_dilation
from lib_demofusion.method.plan import make_plan
from lib_demofusion.method.schedule import weights_at
from lib_demofusion.method.views import View, dilated_views, local_views
from lib_demofusion.settings.fields import Settings


def model(crops: Tensor, rows: slice) -> Tensor:
    """A denoiser that treats every row differently, so that the tests notice swapped rows."""
    gain = torch.arange(10.0)[rows].repeat(len(crops) // (rows.stop - rows.start))
    return torch.tanh(crops) * (1 + gain.view(-1, 1, 1, 1))


class SmallMemory:
    """A model on a device that holds `limit` rows at once. It also fails at the given attempts."""

    def __init__(self, limit: int = 1000, failing: Sequence[int] = ()):
        self.limit, self.failing = limit, set(failing)
        self.attempts: list[int] = []
        self.released = 0

    def __call__(self, crops: Tensor, views: Sequence[View], rows: slice) -> Tensor:
        assert len(crops) == len(views) * (rows.stop - rows.start)
        self.attempts.append(len(crops))
        if len(crops) > self.limit or len(self.attempts) - 1 in self.failing:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return model(crops, rows)

    def free(self) -> int | None:
        return 1000

    def begin(self) -> None:
        pass

    def peak(self) -> int:
        return 130

    def release(self) -> None:
        self.released += 1


SIZE = (20, 28)
X = torch.randn(2, 4, *SIZE, generator=torch.Generator().manual_seed(0))


def fused(evaluate: SmallMemory, batches: ViewBatches, window: tuple[int, int] = (8, 12)) -> Tensor:
    views = local_views(SIZE, window, (4, 6))
    return fuse(evaluate, X, views, dilated_views(SIZE, 2), 0.4, lambda x: blur_for_dilation(x, 2, 0.8), 1.0, batches)


EXPECTED = fused(SmallMemory(), ViewBatches(1))
CALLS = 4 * 4 + 4
SHARED = (10, 14)
"""A window of the dilated views' size. Local and dilated views of one size share batches."""


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 7, 16, 1000])
@pytest.mark.parametrize("views", [1, 3, 16])
def test_batches_shrink_until_they_fit_into_memory(limit: int, views: int) -> None:
    memory, batches = SmallMemory(limit), ViewBatches(views)
    torch.testing.assert_close(fused(memory, batches), EXPECTED)
    if views * 2 > limit:
        assert batches.views * 2 <= limit or batches.rows == 1
    else:
        assert batches.views == views
    failures = [count for count in memory.attempts if count > limit]
    assert len(failures) <= 5


@pytest.mark.parametrize("attempt", range(CALLS))
def test_one_failure_at_any_point_costs_nothing_but_time(attempt: int) -> None:
    memory = SmallMemory(failing=[attempt])
    torch.testing.assert_close(fused(memory, ViewBatches(1)), EXPECTED)
    memory = SmallMemory(failing=[attempt // 4])
    torch.testing.assert_close(fused(memory, ViewBatches(4)), EXPECTED)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 7, 16, 1000])
@pytest.mark.parametrize("views", [1, 3, 5, 16])
def test_shared_batches_shrink_too(limit: int, views: int) -> None:
    expected = fused(SmallMemory(), ViewBatches(1), SHARED)
    memory = SmallMemory(limit)
    torch.testing.assert_close(fused(memory, ViewBatches(views), SHARED), expected)
    assert max(count for count in memory.attempts if count <= limit) >= min(limit, 2 * views, 40) // 2


@pytest.mark.parametrize("views", [1, 3, 5, 16])
def test_one_failure_of_a_shared_batch_costs_nothing_but_time(views: int) -> None:
    plain = SmallMemory()
    expected = fused(plain, ViewBatches(views), SHARED)
    for attempt in range(len(plain.attempts)):
        memory = SmallMemory(failing=[attempt])
        torch.testing.assert_close(fused(memory, ViewBatches(views), SHARED), expected)
        assert len(memory.attempts) > len(plain.attempts)


def test_memory_is_measured_for_the_first_batch_only() -> None:
    """A measurement resets the peak that the webui displays, so only one batch may be measured."""
    memory, begun = SmallMemory(), []
    memory.begin = lambda: begun.append(len(memory.attempts))
    fused(memory, ViewBatches(0, memory), SHARED)
    assert begun == [0]
    fused(memory, ViewBatches(4, memory), SHARED)
    assert begun == [0]


def test_a_single_row_that_does_not_fit_is_an_error() -> None:
    memory = SmallMemory(0)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        fused(memory, ViewBatches(16))
    assert memory.attempts == [32, 16, 8, 4, 2, 1]


def test_other_errors_are_not_retried() -> None:
    calls = []

    def broken(crops: Tensor, views: Sequence[View], rows: slice) -> Tensor:
        calls.append(len(views))
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        fuse(broken, X, local_views(SIZE, (8, 12), (4, 6)), [], 0.0, lambda x: x, 1.0, ViewBatches(8))
    assert calls == [8]


def test_automatic_batch_size_fits_into_the_free_memory() -> None:
    memory = SmallMemory()
    batches = ViewBatches(0, memory)
    fused(memory, batches)
    assert batches.views == 4  # 80 % of 1000 at 130 per view, rounded down to a power of two
    assert memory.attempts[:2] == [2, 8]
    memory.peak = lambda: 1
    batches = ViewBatches(0, memory)
    fused(memory, batches)
    assert batches.views == MOST_VIEWS


def test_views_of_a_larger_size_are_measured_again() -> None:
    """At 1.5x a dilated view is smaller than a local one, and the first calls may evaluate only dilated views."""
    memory = SmallMemory()
    memory.peak = lambda: cells[-1]
    cells: list[int] = []

    def evaluate(crops: Tensor, views: Sequence[View], rows: slice) -> Tensor:
        cells.append(crops[0, 0].numel())
        memory.attempts.append(len(views))
        return crops

    batches = ViewBatches(0, memory)
    small = [(view, X) for view in dilated_views(SIZE, 4)]
    large = [(view, X) for view in local_views(SIZE, (10, 14), (5, 7))]
    assert len(list(batches.predictions(evaluate, small, 2))) == 16
    assert memory.attempts == [1, 15]  # 5 x 7 cells: 22 would fit, and the maximum is 16
    assert len(list(batches.predictions(evaluate, large, 2))) == 9
    assert batches.views == 4  # 10 x 14 cells: 5 fit
    assert memory.attempts[2:] == [1, 4, 4]
    assert len(list(batches.predictions(evaluate, small, 2))) == 16
    assert memory.attempts[5:] == [4, 4, 4, 4]


def test_a_requested_number_of_views_is_used_at_every_size() -> None:
    memory, batches = SmallMemory(), ViewBatches(3)
    fused(memory, batches, SHARED)
    fused(memory, batches, (12, 16))
    assert set(memory.attempts[:4]) == {6}
    assert batches.views == 3


def test_memory_is_released_after_every_failure() -> None:
    memory = SmallMemory(4)
    fused(memory, ViewBatches(16, memory))
    assert memory.released == sum(count > 4 for count in memory.attempts) == 3


@pytest.mark.parametrize("c2", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("copies", [1, 2])
def test_fusion_allocates_at_most_four_latents_and_the_batch(c2: float, copies: int) -> None:
    size, window, view_batch = (512, 512), (128, 128), 4
    x = torch.randn(2, 4, *size)
    latent = x.untyped_storage().nbytes()
    batch = view_batch * latent * 128 * 128 // (512 * 512)
    with PeakBytes() as bytes_:
        fuse(
            lambda crops, views, rows: crops,
            x,
            local_views(size, window, (64, 64)),
            dilated_views(size, 4),
            c2,
            lambda z: blur_for_dilation(z, 4, 0.8),
            1.0,
            ViewBatches(view_batch),
            copies,
        )
    assert bytes_.peak <= 4 * latent + 3 * batch
    # the accumulator and the blurred latent: this shows that the count works
    assert c2 in (0.0, 1.0) or bytes_.peak >= (1 + 1 / copies) * latent


@pytest.mark.parametrize("thresholds", [(0.0, 0.0), (0.1, 0.0), (0.0, 0.1), (0.1, 0.2)])
def test_predicted_number_of_evaluations_is_exact(thresholds: tuple[float, float]) -> None:
    settings = Settings(scale=2.5, skip_views=f"{thresholds[1]},{thresholds[0]}")
    stage = make_plan(settings, (16, 24)).stages[-1]
    x = torch.randn(1, 4, *stage.size)
    for t in [999, 980, 900, 700, 500, 300, 200, 100, 20, 1, 0]:
        counted = 0

        def evaluate(crops: Tensor, views: Sequence[View], rows: slice) -> Tensor:
            nonlocal counted
            counted += len(views)
            return crops

        c2 = weights_at(t, settings).dilated
        local = local_views(stage.size, stage.window, stage.stride)
        fuse(evaluate, x, local, dilated_views(stage.size, stage.factor), c2, lambda z: z, 1.0, ViewBatches(3))
        assert counted == evaluations(stage, c2)
    few = {evaluations(stage, weights_at(t, settings).dilated) for t in (980, 100)}
    assert (few == {evaluations(stage)}) == (thresholds == (0.0, 0.0))
