"""Tests the batches of views: out-of-memory errors, the automatic batch size, and the memory that fusion allocates."""

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
    """Denoises crops. Each row of the model call has a different factor, so swapped rows would change the result."""
    gain = torch.arange(10.0)[rows].repeat(len(crops) // (rows.stop - rows.start))
    return torch.tanh(crops) * (1 + gain.view(-1, 1, 1, 1))


class SmallMemory:
    """Imitates a model and the memory of its device.

    A model call with V views of N rows each has V * N rows. It runs out of memory if it has more than `limit` rows, or
    if `failing` contains its number, counted from 0.
    """

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
"""Number of model calls in `fused` with one view per call: 4 x 4 local views and 4 dilated views."""
SHARED = (10, 14)
"""The size of the dilated views. With this `window`, local and dilated views are evaluated in the same batches."""


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
def test_one_failed_call_does_not_change_the_result(attempt: int) -> None:
    memory = SmallMemory(failing=[attempt])
    torch.testing.assert_close(fused(memory, ViewBatches(1)), EXPECTED)
    memory = SmallMemory(failing=[attempt // 4])
    torch.testing.assert_close(fused(memory, ViewBatches(4)), EXPECTED)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 7, 16, 1000])
@pytest.mark.parametrize("views", [1, 3, 5, 16])
def test_batches_with_both_kinds_of_views_shrink_until_they_fit_into_memory(limit: int, views: int) -> None:
    expected = fused(SmallMemory(), ViewBatches(1), SHARED)
    memory = SmallMemory(limit)
    torch.testing.assert_close(fused(memory, ViewBatches(views), SHARED), expected)
    # a failed batch is halved, so the largest successful batch has at least half of the rows that would fit; all 20
    # views together have 40 rows
    assert max(count for count in memory.attempts if count <= limit) >= min(limit, 2 * views, 40) // 2


@pytest.mark.parametrize("views", [1, 3, 5, 16])
def test_one_failed_batch_with_both_kinds_of_views_does_not_change_the_result(views: int) -> None:
    plain = SmallMemory()
    expected = fused(plain, ViewBatches(views), SHARED)
    for attempt in range(len(plain.attempts)):
        memory = SmallMemory(failing=[attempt])
        torch.testing.assert_close(fused(memory, ViewBatches(views), SHARED), expected)
        assert len(memory.attempts) > len(plain.attempts)


def test_memory_is_measured_only_for_the_first_batch_of_the_automatic_mode() -> None:
    """With a fixed number of views, no batch is measured.

    A measurement resets the memory peak that the webui displays after the job.
    """
    memory, begun = SmallMemory(), []
    memory.begin = lambda: begun.append(len(memory.attempts))
    fused(memory, ViewBatches(0, memory), SHARED)
    assert begun == [0]
    fused(memory, ViewBatches(4, memory), SHARED)
    assert begun == [0]


def test_a_single_row_that_does_not_fit_into_memory_raises_an_out_of_memory_error() -> None:
    memory = SmallMemory(0)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        fused(memory, ViewBatches(16))
    assert memory.attempts == [32, 16, 8, 4, 2, 1]


def test_after_other_errors_the_batch_is_not_evaluated_again() -> None:
    calls = []

    def broken(crops: Tensor, views: Sequence[View], rows: slice) -> Tensor:
        calls.append(len(views))
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        fuse(broken, X, local_views(SIZE, (8, 12), (4, 6)), [], 0.0, lambda x: x, 1.0, ViewBatches(8))
    assert calls == [8]


def test_the_automatic_batch_size_is_the_largest_power_of_two_that_fits_into_the_free_memory() -> None:
    memory = SmallMemory()
    batches = ViewBatches(0, memory)
    fused(memory, batches)
    # 6 views of 130 bytes fit into 80 % of 1000 bytes, and the largest power of two up to 6 is 4
    assert batches.views == 4
    assert memory.attempts[:2] == [2, 8]
    memory.peak = lambda: 1
    batches = ViewBatches(0, memory)
    fused(memory, batches)
    assert batches.views == MOST_VIEWS


def test_memory_is_measured_again_for_larger_views() -> None:
    """At a scale of 1.5, dilated views are smaller than local views.

    The first model calls of a stage can have only dilated views. A batch size that fits these views can be too large
    for local views.
    """
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
    # `peak` returns one byte per cell: 22 views of 5 x 7 cells would fit into 800 bytes, but the maximum is 16
    assert memory.attempts == [1, 15]
    assert len(list(batches.predictions(evaluate, large, 2))) == 9
    # 5 views of 10 x 14 cells fit into 800 bytes, and the largest power of two up to 5 is 4
    assert batches.views == 4
    assert memory.attempts[2:] == [1, 4, 4]
    assert len(list(batches.predictions(evaluate, small, 2))) == 16
    assert memory.attempts[5:] == [4, 4, 4, 4]


def test_a_requested_number_of_views_is_used_for_views_of_every_size() -> None:
    memory, batches = SmallMemory(), ViewBatches(3)
    fused(memory, batches, SHARED)
    fused(memory, batches, (12, 16))
    # Each view has two rows. The first call of `fused` has 20 views of one size. The second call has 9 local views of
    # one size and 4 dilated views of another size.
    assert memory.attempts == [*[6] * 6, 4, *[6] * 3, 6, 2]
    assert batches.views == 3


def test_cached_memory_is_released_after_every_failed_batch() -> None:
    memory = SmallMemory(4)
    fused(memory, ViewBatches(16, memory))
    assert memory.released == sum(count > 4 for count in memory.attempts) == 3


@pytest.mark.parametrize("c2", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("copies", [1, 2])
def test_fusion_allocates_at_most_four_latents_and_three_batches(c2: float, copies: int) -> None:
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
    # shows that the measurement works: with both kinds of views, the peak contains the result and the blurred latent
    assert c2 in (0.0, 1.0) or bytes_.peak >= (1 + 1 / copies) * latent


@pytest.mark.parametrize("thresholds", [(0.0, 0.0), (0.1, 0.0), (0.0, 0.1), (0.1, 0.2)])
def test_the_predicted_number_of_evaluated_views_is_exact(thresholds: tuple[float, float]) -> None:
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
    # with any threshold, at least one of these two timesteps has fewer views; without thresholds, both have all views
    numbers = {evaluations(stage, weights_at(t, settings).dilated) for t in (980, 100)}
    assert (numbers == {evaluations(stage)}) == (thresholds == (0.0, 0.0))
