"""Tests the fusion of predictions, the weights, the filters of latents, and the anchors of stages.

The expected values come from denoisers without views, from independent formulas, and from SciPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from fusing import fuse
from hypothesis import example, given, settings
from scipy.ndimage import gaussian_filter
from torch import Tensor

from lib_demofusion.method import filters
from lib_demofusion.method.batching import ViewBatches
from lib_demofusion.method.filters import (
    blur_for_dilation,
    gaussian_blur,
    match_low_band,
    match_statistics,
    mean_and_std,
    smooth,
)
from lib_demofusion.method.fusion import Feathering
from lib_demofusion.method.plan import Plan, StagePlan
from lib_demofusion.method.residual import VarianceExploding
from lib_demofusion.method.sampler_steps import StepDetector
from lib_demofusion.method.schedule import Weights, cosine_factor, weights_at
from lib_demofusion.method.stage import SamplerTraits, StageRun, finish_stage, make_anchor, mix_anchors
from lib_demofusion.method.views import LocalView, Size, View, dilated_views, jitter_generator, local_views
from lib_demofusion.settings.fields import Settings

EXAMPLES = settings(max_examples=80, deadline=None)
GRIDS = st.tuples(st.integers(8, 40), st.integers(8, 40), st.integers(4, 12), st.integers(4, 12), st.integers(1, 4))
"""Height, width, side of a tile, stride and dilation factor for a small latent."""
C2 = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))
"""Draws the weight of the dilated views, often exactly 0 or 1."""


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def views_on(size: Size, window: int, stride: int, factor: int) -> tuple[list[LocalView], list[View]]:
    """Returns the local views, with jitter, and the dilated views of a latent.

    `window` is limited to the sides of the latent, and `stride` is limited to the sides of the tiles.
    """
    sides = (min(window, size[0]), min(window, size[1]))
    strides = (min(stride, sides[0]), min(stride, sides[1]))
    return local_views(size, sides, strides, jitter_generator(1, 5)), dilated_views(size, factor)


def unblurred(x: Tensor) -> Tensor:
    return x


def soft_blur(x: Tensor) -> Tensor:
    return blur_for_dilation(x, 3, 0.8)


CONV_1, CONV_2 = randn(8, 4, 3, 3, seed=1) / 6, randn(4, 8, 3, 3, seed=2) / 8


def network(x: Tensor, views: Sequence[View] = (), rows: slice = slice(None)) -> Tensor:
    """Denoises x with a small nonlinear model. The result at a cell depends on the neighboring cells."""
    hidden = torch.tanh(F.conv2d(x, CONV_1.to(x), padding=1))
    return F.conv2d(hidden, CONV_2.to(x), padding=1)


def offset_of(view: View) -> float:
    """Returns a number that depends on the kind and the position of a view."""
    if isinstance(view, LocalView):
        return view.top / 7 + view.left / 13
    return 3 + view.row / 3 + view.column / 5


def offset_network(x: Tensor, views: Sequence[View], rows: slice) -> Tensor:
    """Adds `offset_of` of each view to the result of `network` for the crop of this view.

    If a crop is evaluated or added at the position of another view, the fused prediction is therefore different.
    """
    return torch.cat([network(crop) + offset_of(view) for crop, view in zip(x.chunk(len(views)), views)])


@EXAMPLES
@given(grid=GRIDS, c2=C2)
@example(grid=(33, 17, 8, 3, 3), c2=0.3)
def test_weights_sum_to_one(grid: tuple[int, int, int, int, int], c2: float) -> None:
    """If all views predict the same constant, the result is this constant."""
    height, width, window, stride, factor = grid
    x = randn(2, 4, height, width)
    out = fuse(
        lambda crops, views, rows: torch.full_like(crops, 2.5),
        x,
        *views_on((height, width), window, stride, factor),
        c2,
        unblurred,
        1.0,
    )
    torch.testing.assert_close(out, torch.full_like(x, 2.5), rtol=1e-5, atol=0)


@EXAMPLES
@given(grid=GRIDS, c2=C2, blurred=st.booleans())
def test_a_model_that_returns_its_input_does_not_change_x(
    grid: tuple[int, int, int, int, int], c2: float, blurred: bool
) -> None:
    """A blur does not change the result either, because the correction restores the detail that the blur removes."""
    height, width, window, stride, factor = grid
    x = randn(2, 4, height, width)
    views = views_on((height, width), window, stride, factor)
    out = fuse(lambda crops, views, rows: crops, x, *views, c2, soft_blur if blurred else unblurred, 1.0)
    torch.testing.assert_close(out, x, rtol=1e-5, atol=1e-5)


def fused_by_hand(
    predict: Callable[[Tensor, View], Tensor],
    x: Tensor,
    local: Sequence[LocalView],
    factor: int,
    c2: float,
    correction: float,
) -> Tensor:
    """Computes the fusion from the formula of the paper. Dilated views are cropped from a latent padded with zeros."""
    total, count = torch.zeros_like(x), torch.zeros_like(x)
    for view in local:
        rows, columns = slice(view.top, view.top + view.height), slice(view.left, view.left + view.width)
        total[..., rows, columns] += predict(x[..., rows, columns], view)
        count[..., rows, columns] += 1
    height, width = x.shape[2:]
    blurred = soft_blur(x)
    padded = F.pad(blurred, (-width % factor, 0, -height % factor, 0))
    whole = torch.zeros_like(padded)
    for view in dilated_views((height, width), factor):
        phase = (..., slice(view.row, None, factor), slice(view.column, None, factor))
        whole[phase] = predict(padded[phase], view)
    dilated = whole[..., -height:, -width:] + correction * (x - blurred)
    return (1 - c2) * total / count + c2 * dilated


@pytest.mark.parametrize("size", [(24, 32), (33, 25)])
@pytest.mark.parametrize("c2", [0.0, 0.35, 1.0])
@pytest.mark.parametrize("view_batch", [1, 3, 16, 1000])
def test_fusion_equals_the_formula(size: Size, c2: float, view_batch: int) -> None:
    """The result does not depend on the number of views in a batch."""
    x = randn(3, 4, *size)
    local, dilated = views_on(size, 12, 5, 3)
    out = fuse(offset_network, x, local, dilated, c2, soft_blur, 0.7, ViewBatches(view_batch))
    expected = fused_by_hand(lambda crop, view: network(crop) + offset_of(view), x, local, 3, c2, 0.7)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("view_batch", [1, 3, 16])
def test_view_batches_are_as_large_as_allowed(view_batch: int) -> None:
    x = randn(2, 4, 24, 32)
    local, dilated = views_on((24, 32), 12, 6, 2)
    sizes = {"LocalView": [], "DilatedView": []}

    def evaluate(crops: Tensor, views: Sequence[View], rows: slice) -> Tensor:
        assert len(crops) == 2 * len(views)
        sizes[type(views[0]).__name__].append(len(views))
        return crops

    fuse(evaluate, x, local, dilated, 0.5, unblurred, 0.0, ViewBatches(view_batch))
    for views, batches in zip((local, dilated), sizes.values()):
        full, rest = divmod(len(views), view_batch)
        assert batches == [view_batch] * full + [rest] * (rest > 0)


@pytest.mark.parametrize("view_batch", [1, 3, 8, 13, 16])
def test_the_last_batch_of_one_path_is_filled_with_views_of_the_other(view_batch: int) -> None:
    """Here, the nine local views and the four dilated views have the same size, so they can share a batch."""
    x = randn(2, 4, 24, 32)
    local, dilated = views_on((24, 32), 12, 6, 2)
    local = local_views((24, 32), (12, 16), (6, 8), jitter_generator(1, 5))
    batches = []

    def evaluate(crops: Tensor, views: Sequence[View], rows: slice) -> Tensor:
        batches.append(len(views))
        return offset_network(crops, views, rows)

    out = fuse(evaluate, x, local, dilated, 0.3, soft_blur, 0.7, ViewBatches(view_batch))
    full, rest = divmod(len(local) + len(dilated), view_batch)
    assert batches == [view_batch] * full + [rest] * (rest > 0)
    expected = fused_by_hand(lambda crop, view: network(crop) + offset_of(view), x, local, 2, 0.3, 0.7)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("copies", [2, 3])
@pytest.mark.parametrize("view_batch", [1, 5, 16])
@pytest.mark.parametrize("c2", [0.3, 1.0])
def test_repeated_images_are_blurred_only_once(copies: int, view_batch: int, c2: float) -> None:
    """x repeats each image, as in a call with cond and uncond.

    In the test, each row of x has its own correction, and its predictions are multiplied by a factor of their own.
    """
    images = randn(2, 4, 33, 25)
    x = images.repeat(copies, 1, 1, 1)
    gain = 1 + torch.arange(len(x)).view(-1, 1, 1, 1)
    blurred = []

    def blur(latent: Tensor) -> Tensor:
        blurred.append(len(latent))
        return soft_blur(latent)

    def evaluate(crops: Tensor, views: Sequence[View], rows: slice) -> Tensor:
        return offset_network(crops, views, rows) * gain[rows].repeat(len(views), 1, 1, 1)

    arguments = (*views_on((33, 25), 12, 5, 3), c2, blur, gain / 10, ViewBatches(view_batch))
    once = fuse(evaluate, x, *arguments, copies)
    each = fuse(evaluate, x, *arguments)
    assert blurred == [2, 2 * copies]
    torch.testing.assert_close(once, each, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(x, images.repeat(copies, 1, 1, 1), rtol=0, atol=0)


@pytest.mark.parametrize(("c2", "kinds"), [(0.0, {LocalView}), (1.0, {type(dilated_views((1, 1), 1)[0])})])
def test_a_path_of_weight_zero_is_not_evaluated(c2: float, kinds: set[type]) -> None:
    seen = set()

    def evaluate(crops: Tensor, views: Sequence[View], rows: slice) -> Tensor:
        seen.update(type(view) for view in views)
        return crops

    fuse(evaluate, randn(1, 4, 24, 24), *views_on((24, 24), 12, 6, 2), c2, unblurred, 0.0)
    assert seen == kinds


def stage_run(
    size: Size, window: Size, stride: Size, t: float, factor: int = 2, **fields: object
) -> tuple[StageRun, Tensor]:
    """Returns a stage run of two images in its first model call, and x, the noised anchor.

    The sampler's noise level in this call is 2, and the model's timestep is `t`.
    """
    anchor, noise = randn(2, 4, *size, seed=3), randn(2, 4, *size, seed=4)
    space = VarianceExploding(lambda sigma: torch.full_like(sigma, t))
    stage = StagePlan(1, 2.0, size, factor, window, stride)
    run = StageRun(stage, Settings(**fields), anchor, noise, SamplerTraits(space, StepDetector()))
    x = torch.zeros_like(anchor)
    run.before_call(x, torch.tensor(2.0))
    return run, x


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [(24, 32), (33, 25)])
def test_one_tile_without_dilated_views_gives_the_same_result_as_the_model_itself(
    dtype: torch.dtype, size: Size
) -> None:
    """At timestep 0, c2 is 0, so only the tile is evaluated. The results are equal bit for bit."""
    run, x = stage_run(size, size, (12, 12), t=0.0)
    x = x.to(dtype)
    out = run.denoise(network, x, 1.0, ViewBatches(4))
    assert torch.equal(out, network(x))
    assert out.dtype == dtype


def test_several_tiles_or_dilated_views_give_another_result_than_the_model_itself() -> None:
    for window, t in (((12, 16), 0.0), ((24, 32), 300.0)):
        run, x = stage_run((24, 32), window, (6, 8), t)
        assert float((run.denoise(network, x, 1.0, ViewBatches(4)) - network(x)).abs().max()) > 1e-3


@pytest.mark.parametrize("t", [0.0, 400.0, 990.0, 1000.0])
@pytest.mark.parametrize("view_batch", [1, 3, 16])
def test_an_image_is_the_same_alone_and_in_a_batch(t: float, view_batch: int) -> None:
    run, x = stage_run((33, 40), (16, 20), (8, 7), t)
    together = run.denoise(network, x, 1.0, ViewBatches(view_batch))
    for k in range(2):
        alone = run.denoise(network, x[k : k + 1], 1.0, ViewBatches(1))
        torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-5, atol=1e-6)


def test_every_call_has_its_own_jittered_views() -> None:
    run, x = stage_run((64, 64), (16, 16), (8, 8), 500.0)
    for call in range(3):
        assert run.local == local_views((64, 64), (16, 16), (8, 8), jitter_generator(1, call))
        run.before_call(x, torch.tensor(2.0))
    fixed, x = stage_run((64, 64), (16, 16), (8, 8), 500.0, jitter=False)
    assert fixed.local == local_views((64, 64), (16, 16), (8, 8))


@pytest.mark.parametrize("size", [(20, 20), (8, 8), (16, 20)])
def test_an_x_of_another_size_is_an_error(size: Size) -> None:
    """reForge's Euler SMEA passes such an x to its model: it temporarily enlarges x and evaluates the enlarged x."""
    run, x = stage_run((16, 16), (8, 8), (4, 4), 500.0)
    other = F.interpolate(x, size)
    for _ in range(2):
        with pytest.raises(ValueError, match="of another size"):
            run.before_call(other, torch.tensor(2.0))


def test_a_run_uses_c2_and_the_blur_of_its_timestep() -> None:
    """The weight c1 is tested with the steps of real samplers in test_sampler_steps.py."""
    fields = {"cosine_scale_2": 2.0, "cosine_scale_3": 0.5, "sigma": 1.3}
    run, x = stage_run((24, 30), (12, 12), (6, 6), 600.0, factor=3, **fields)
    factor = (1 + math.cos(math.pi * 0.4)) / 2
    c2, std = factor**2, 1.3 * (0.99 * factor**0.5 + 0.01)
    expected = fuse(network, x, run.local, run.dilated, c2, lambda z: blur_for_dilation(z, 3, std), 0.6)
    torch.testing.assert_close(run.denoise(network, x, 0.6, ViewBatches(2)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("correction", [0.0, 0.3, 1.0, torch.tensor([0.2, 0.9]).view(2, 1, 1, 1)])
@pytest.mark.parametrize("size", [(24, 32), (33, 25)])
def test_correction_for_a_linear_denoiser(correction: Tensor | float, size: Size) -> None:
    """The model multiplies its input by a. The fused prediction is then (1 - c2) a x + c2 (a Gx + k (x - Gx)).

    Gx is the blurred x, and k is the correction, which can have another value for each image.
    """
    x, a, c2 = randn(2, 4, *size), 0.4, 0.7
    out = fuse(lambda crops, views, rows: a * crops, x, *views_on(size, 12, 6, 2), c2, soft_blur, correction)
    blurred = soft_blur(x)
    expected = (1 - c2) * a * x + c2 * (a * blurred + correction * (x - blurred))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_with_a_correction_of_one_the_noise_of_the_blurred_latent_is_subtracted_from_x() -> None:
    """An eps model predicts the noise eps(Gx) from the blurred latent Gx. The result must be x - sigma eps(Gx)."""
    x, sigma = randn(2, 4, 24, 32), 3.0
    out = fuse(
        lambda crops, views, rows: crops - sigma * torch.tanh(crops),
        x,
        *views_on((24, 32), 12, 6, 2),
        1.0,
        soft_blur,
        1.0,
    )
    torch.testing.assert_close(out, x - sigma * torch.tanh(soft_blur(x)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("t", [0.0, 400.0, 999.0])
def test_half_precision_is_kept_and_nearly_exact(dtype: torch.dtype, t: float) -> None:
    """The test uses two extreme values: an x of the highest noise level, 14.6, and the minimum of the field `sigma`.

    At this noise level, values of x reach 78.
    """
    run, x = stage_run((33, 40), (16, 20), (8, 8), t, sigma=0.01)
    x = 14.6 * x / x.std()
    exact = run.denoise(network, x, 1.0, ViewBatches(3))
    out = run.denoise(network, x.to(dtype), 1.0, ViewBatches(3))
    assert out.dtype == dtype
    assert torch.isfinite(out).all()
    assert float((out.float() - exact).abs().max() / x.abs().max()) < 4 * torch.finfo(dtype).eps


def test_many_views_do_not_overflow_half_precision() -> None:
    """A sum in half precision would overflow, because each inner cell is in 64 views."""
    x = torch.zeros(1, 4, 24, 24, dtype=torch.float16)
    local = local_views((24, 24), (8, 8), (1, 1))
    out = fuse(lambda crops, views, rows: torch.full_like(crops, 2000.0), x, local, [], 0.0, unblurred, 0.0)
    torch.testing.assert_close(out, torch.full_like(x, 2000.0))


@pytest.mark.parametrize(
    ("t", "expected"),
    [
        (1000, Weights(1.0, 1.0, 1.0)),
        (500, Weights(0.125, 0.5, 0.505)),
        (250, Weights(0.14644661**3, 0.14644661, 0.99 * 0.14644661 + 0.01)),
        (0, Weights(0.0, 0.0, 0.01)),
    ],
)
def test_weights_of_the_paper(t: float, expected: Weights) -> None:
    weights = weights_at(t, Settings())
    for name in ("skip", "dilated", "blur"):
        assert getattr(weights, name) == pytest.approx(getattr(expected, name), abs=1e-9)


@EXAMPLES
@given(t=st.floats(0, 1000), scales=st.tuples(*[st.floats(0, 10)] * 3))
def test_weights_stay_between_zero_and_one(t: float, scales: tuple[float, float, float]) -> None:
    weights = weights_at(t, Settings(cosine_scale_1=scales[0], cosine_scale_2=scales[1], cosine_scale_3=scales[2]))
    assert 0 <= cosine_factor(t) <= 1
    assert 0 <= weights.skip <= 1
    assert 0 <= weights.dilated <= 1
    assert 0.01 <= weights.blur <= 1


@pytest.mark.parametrize("exponent", range(1, 25))
def test_no_path_is_skipped_if_its_weight_can_change_a_sum_in_single_precision(exponent: int) -> None:
    """At the two timesteps, the cosine factor is 2**-exponent and 1 - 2**-exponent."""
    low = math.acos(1 - 2 * 2.0**-exponent) * 1000 / math.pi
    settings = Settings(cosine_scale_2=1.0, skip_views="0,0")
    for t, c2 in ((low, 2.0**-exponent), (1000 - low, 1 - 2.0**-exponent)):
        assert weights_at(t, settings).dilated == pytest.approx(c2, rel=1e-9)
        assert 0 < weights_at(t, settings).dilated < 1


@pytest.mark.parametrize("factor", [1, 2, 3, 5])
@pytest.mark.parametrize("std", [0.008, 0.5, 0.8, 3.0])
@pytest.mark.parametrize("at_once", [1, 8, 3 * 8, 5 * 8, filters.AT_ONCE])
def test_blur_equals_a_dense_convolution(
    monkeypatch: pytest.MonkeyPatch, factor: int, std: float, at_once: int
) -> None:
    """The kernel has (2 factor - 1) x (2 factor - 1) taps with a sum of 1. The latent is padded with zeros.

    The result does not depend on the number of cells that are filtered at once.
    """
    monkeypatch.setattr(filters, "AT_ONCE", at_once)
    x = randn(2, 3, 11, 8, dtype=torch.float64)
    reach = factor - 1
    taps = range(-reach, reach + 1)
    kernel = torch.tensor([[math.exp(-(i * i + j * j) / (2 * std**2)) for j in taps] for i in taps]).double()
    kernel /= kernel.sum()
    padded = F.pad(x, (reach,) * 4)
    expected = sum(
        kernel[i, j] * padded[..., i : i + 11, j : j + 8] for i in range(2 * reach + 1) for j in range(2 * reach + 1)
    )
    torch.testing.assert_close(gaussian_blur(x, factor, std), expected, rtol=1e-6, atol=1e-7)


def test_every_image_has_its_own_mean_and_standard_deviation() -> None:
    x = randn(3, 4, 8, 9, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.1]).view(3, 1, 1, 1) + 2
    mean, std = mean_and_std(x)
    for k in range(3):
        assert float(mean[k]) == pytest.approx(float(x[k].mean()))
        assert float(std[k]) == pytest.approx(float(x[k].std()))
    wanted_mean, wanted_std = randn(3, 1, 1, 1).double(), randn(3, 1, 1, 1, seed=1).abs().double()
    for actual, expected in zip(mean_and_std(match_statistics(x, wanted_mean, wanted_std)), (wanted_mean, wanted_std)):
        torch.testing.assert_close(actual, expected)


def test_matching_statistics_only_scales_and_shifts_the_values() -> None:
    x = randn(1, 4, 8, 9, dtype=torch.float64)
    out = match_statistics(x, torch.tensor(3.0).view(1, 1, 1, 1), torch.tensor(2.0).view(1, 1, 1, 1))
    torch.testing.assert_close(out, 3 + 2 * (x - x.mean()) / x.std())


@EXAMPLES
@given(grid=GRIDS, feather=st.floats(0, 0.5), c2=C2)
@example(grid=(33, 17, 8, 3, 3), feather=0.5, c2=0.3)
def test_feathering_does_not_change_cells_on_which_all_views_agree(
    grid: tuple[int, int, int, int, int], feather: float, c2: float
) -> None:
    """The prediction at a cell depends only on x at this cell, so all views predict the same value for the cell."""
    height, width, window, stride, factor = grid
    x = randn(1, 4, height, width)
    views = views_on((height, width), window, stride, factor)
    out = fuse(
        lambda crops, views, rows: torch.sin(crops), x, *views, c2, unblurred, 0.0, feathering=Feathering(feather)
    )
    torch.testing.assert_close(out, torch.sin(x), rtol=1e-5, atol=1e-5)


def test_feathered_views_cross_fade_where_they_overlap() -> None:
    """The views are 8 cells wide and overlap by 4 cells. The weights rise from 1/3 and 2/3 at a border to 1."""
    x = torch.zeros(1, 1, 8, 12)
    views = [LocalView(0, 0, 8, 8), LocalView(0, 4, 8, 8)]

    def evaluate(crops: Tensor, views: Sequence[View], rows: slice) -> Tensor:
        return torch.stack([torch.full_like(crop, float(view.left)) for crop, view in zip(crops, views)])

    out = fuse(evaluate, x, views, [], 0.0, unblurred, 0.0, ViewBatches(2), feathering=Feathering(0.25))
    left, right = [1.0, 1.0, 2 / 3, 1 / 3], [1 / 3, 2 / 3, 1.0, 1.0]
    between = [4 * b / (a + b) for a, b in zip(left, right)]
    expected = torch.tensor([0.0] * 4 + between + [4.0] * 4)
    torch.testing.assert_close(out, expected.expand(1, 1, 8, 12))


def test_without_feathering_the_result_is_exactly_the_unweighted_mean() -> None:
    x = randn(2, 4, 24, 20)
    local, dilated = views_on((24, 20), 8, 4, 2)
    total, count = torch.zeros_like(x), torch.zeros(24, 20)
    for view in local:
        view.take(total).add_(network(view.take(x)))
        view.take(count).add_(1)
    total *= 1 / count.clamp_min(1)
    assert torch.equal(fuse(network, x, local, dilated, 0.0, unblurred, 0.0, ViewBatches(1)), total)


def test_a_stage_uses_the_feather_of_its_settings() -> None:
    plan = StagePlan(1, 2.0, (16, 16), 2, (8, 8), (4, 4))
    x, space = randn(1, 4, 16, 16), VarianceExploding(lambda sigma: torch.zeros_like(sigma))
    for feather in (0.0, 0.25):
        run = StageRun(plan, Settings(feather=feather), x, x, SamplerTraits(space, StepDetector()))
        run.weights = Weights(0.0, 0.0, 0.0)
        expected = fuse(
            offset_network, x, run.local, [], 0.0, unblurred, 0.0, ViewBatches(4), feathering=Feathering(feather)
        )
        assert torch.equal(run.denoise(offset_network, x, 0.0, ViewBatches(4)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("value", [0.0, 0.1, -7.3])
def test_a_flat_image_stays_finite(dtype: torch.dtype, value: float) -> None:
    """The standard deviation of a flat image is 0 or a rounding error. `match_statistics` must not divide by it."""
    x = torch.full((1, 4, 24, 32), value, dtype=dtype)
    out = match_statistics(x, torch.ones(1, 1, 1, 1, dtype=dtype), torch.full((1, 1, 1, 1), 5.0, dtype=dtype))
    assert torch.isfinite(out).all()


def test_blur_for_dilation_keeps_the_statistics_of_each_image() -> None:
    x = randn(2, 4, 20, 24, dtype=torch.float64) * torch.tensor([1.0, 9.0]).view(2, 1, 1, 1)
    out = blur_for_dilation(x, 3, 0.8)
    for actual, expected in zip(mean_and_std(out), mean_and_std(x)):
        torch.testing.assert_close(actual, expected)
    plain = gaussian_blur(x, 3, 0.8)
    for k in range(2):
        assert float(torch.corrcoef(torch.stack([out[k].flatten(), plain[k].flatten()]))[0, 1]) == pytest.approx(1)
    torch.testing.assert_close(blur_for_dilation(x[1:], 3, 0.8), out[1:])


def test_each_image_of_a_finished_stage_has_the_mean_and_standard_deviation_of_its_base_image() -> None:
    base = randn(2, 4, 8, 12) * torch.tensor([1.0, 3.0]).view(2, 1, 1, 1) - 1
    x = randn(2, 4, 16, 24, seed=1) * 7
    before = x.clone()
    out = finish_stage(x, base)
    assert torch.equal(x, before)
    for actual, expected in zip(mean_and_std(out), mean_and_std(base)):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(finish_stage(x[1:], base[1:]), out[1:])


def test_a_tint_is_removed_and_detail_is_kept() -> None:
    """The tint differs between channels, so matching the statistics of the whole latent would not remove the tint."""
    areas = randn(2, 4, 4, 4, dtype=torch.float64)
    base = areas.repeat_interleave(4, 2).repeat_interleave(4, 3)
    detail = randn(2, 4, 64, 64, seed=1, dtype=torch.float64)
    detail -= F.adaptive_avg_pool2d(detail, 4).repeat_interleave(16, 2).repeat_interleave(16, 3)
    clean = areas.repeat_interleave(16, 2).repeat_interleave(16, 3) + detail
    tint = torch.tensor([0.3, -0.2, 0.0, 0.5], dtype=torch.float64).view(1, 4, 1, 1)
    torch.testing.assert_close(match_low_band(clean, base), clean)
    torch.testing.assert_close(match_low_band(clean + tint, base), clean)
    paler = match_low_band(0.8 * (clean - detail) + detail, base)
    assert (paler - clean).abs().mean() < 0.5 * (0.2 * (clean - detail)).abs().mean()
    torch.testing.assert_close(match_low_band((clean + tint)[1:], base[1:]), clean[1:])


def test_colors_are_matched_to_the_part_of_the_base_that_the_stage_shows() -> None:
    base, x = randn(1, 4, 8, 12), randn(1, 4, 16, 16, seed=1) + torch.tensor([1.0, 0, 0, -1]).view(1, 4, 1, 1)
    shown = base[..., 2:10]
    out = finish_stage(x, base, shown)
    # the shift of the colors is interpolated between areas, so the means only match approximately
    assert (out.mean((2, 3)) - shown.mean((2, 3))).abs().max() < 0.01
    assert (finish_stage(x, base).mean((2, 3)) - shown.mean((2, 3))).abs().max() > 0.1


def test_a_mixed_anchor_has_the_coarse_structure_of_the_latent_and_the_fine_detail_of_the_image() -> None:
    pixels = randn(1, 4, 32, 48, dtype=torch.float64)
    tint = torch.tensor([0.3, -0.2, 0.0, 0.5], dtype=torch.float64).view(1, 4, 1, 1)
    torch.testing.assert_close(mix_anchors(pixels, pixels + tint, 4.0), pixels + tint)
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(48), indexing="ij")
    finest = ((rows + columns) % 2 * 2 - 1).double()
    torch.testing.assert_close(mix_anchors(pixels, pixels + finest, 4.0), pixels, rtol=0, atol=1e-6)
    # before the enlargement by 4, this wave had a period of 2 cells, the shortest possible period;
    # the filter keeps 29 % of its amplitude
    wave = torch.cos(math.pi * columns.double() / 4)
    passed = (mix_anchors(pixels, pixels + wave, 4.0) - pixels)[..., 8:-8] / wave[:, 8:-8].clamp(min=0.5)
    assert passed.max() == pytest.approx(math.exp(-((math.pi / 2) ** 2) / 2), rel=0.05)


def test_smooth_equals_the_gaussian_filter_of_scipy() -> None:
    x = randn(2, 4, 20, 31, dtype=torch.float64)
    for std in (0.5, 2.0):
        expected = gaussian_filter(x.numpy(), (0, 0, std, std), mode="mirror", radius=math.ceil(3 * std))
        torch.testing.assert_close(smooth(x, std), torch.from_numpy(expected))
    assert torch.isfinite(smooth(x, 12.0)).all()


def test_extra_noise_is_added_only_at_the_start_of_a_stage() -> None:
    """In later blends, the anchor must have exactly the noise level that the sampler passes to its model."""
    anchor, noise = randn(1, 4, 16, 16), randn(1, 4, 16, 16, seed=1)
    stage = StagePlan(1, 2.0, (16, 16), 2, (8, 8), (4, 4))
    space = VarianceExploding(lambda sigma: 100 * sigma)
    runs = [
        StageRun(stage, Settings(extra_noise=e), anchor, noise, SamplerTraits(space, StepDetector()))
        for e in (0.0, 0.05)
    ]
    for run, share in zip(runs, (0.0, 0.05)):
        x = torch.zeros_like(anchor)
        run.before_call(x, torch.tensor(9.0))
        torch.testing.assert_close(x, anchor + 9 * (1 + share) * noise)
    later = [torch.zeros_like(anchor), torch.zeros_like(anchor)]
    for run, x in zip(runs, later):
        run.before_call(x, torch.tensor(8.0))
    assert torch.equal(*later)


def test_anchor_of_the_first_stage_is_cropped_from_the_base() -> None:
    """Later stages use the whole result of the previous stage."""
    crop = LocalView(2, 0, 4, 12)
    stages = (StagePlan(1, 2.0, (8, 24), 2, (8, 12), (4, 6)), StagePlan(2, 3.0, (12, 36), 3, (8, 12), (4, 6)))
    plan = Plan((8, 12), crop, stages)
    base = randn(2, 4, 8, 12)
    first = make_anchor(base, plan, stages[0])
    torch.testing.assert_close(first, F.interpolate(base[:, :, 2:6], size=(8, 24), mode="bicubic"))
    second = make_anchor(first, plan, stages[1])
    torch.testing.assert_close(second, F.interpolate(first, size=(12, 36), mode="bicubic"))
