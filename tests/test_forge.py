"""Tests the UNet wrapper for Forge, reForge and Forge Neo, and the control models that run in its model calls.

The first test compares the predictions with those of the model wrapper for AUTOMATIC1111's webui, for the same model
and conds. The imitations in this file have the interface that Forge's sampling function uses. Conds and unconds are
chunks of one batch, and each chunk has a mark (0 for cond, 1 for uncond). `apply_model` receives sigmas and returns the
clean latent. Control models form a linked list.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lib_demofusion.host.backends.families import FIVE_AXES, PACKED, PLAIN, LatentForm
from lib_demofusion.host.backends.forge_controlnet import ViewControl, chain
from lib_demofusion.host.backends.forge_unet import FusedUnet, input_derivative, marks_of, options_for
from lib_demofusion.host.backends.interface import StageParts
from lib_demofusion.host.backends.webui_denoiser import FusedModel
from lib_demofusion.method.batching import ViewBatches
from lib_demofusion.method.conditioning import Frame, SizeVectors
from lib_demofusion.method.plan import CELL, StagePlan, make_plan
from lib_demofusion.method.schedule import Weights
from lib_demofusion.method.stage import SamplerTraits, StageRun
from lib_demofusion.method.views import View, dilated_views
from lib_demofusion.settings.fields import Settings

BASE = (16, 16)
PLAN = make_plan(Settings(enabled=True, scale=2), BASE)
STAGE: StagePlan = PLAN.stages[0]
MIXING = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def stage_run(weights: Weights | None = None) -> StageRun:
    """Returns a stage run without jitter. Its next prediction uses `weights`. By default, all three weights are 0.5."""
    settings = Settings(enabled=True, scale=2, jitter=False)
    zeros = torch.zeros(1, 4, *STAGE.size, dtype=torch.float64)
    run = StageRun(STAGE, settings, zeros, zeros, SamplerTraits(SimpleNamespace(), SimpleNamespace()))  # type: ignore[arg-type]
    run.weights = weights or Weights(0.5, 0.5, 0.5)
    run.dilated = dilated_views(STAGE.size, STAGE.factor)
    return run


def parts(run: StageRun, views: int = 3, form: LatentForm = PLAIN) -> StageParts:
    frame = Frame(PLAN.pixels)
    return StageParts(SimpleNamespace(), run, PLAN, ViewBatches(views), frame, lambda cells: None, form=form)


class Predictor:
    """Imitates Forge's schedule object of an eps model or a v model (backend/modules/k_prediction.py)."""

    def __init__(self, v: bool = False):
        self.v = v

    def calculate_denoised(self, sigma: Tensor, output: Tensor, x: Tensor) -> Tensor:
        sigma = sigma.reshape(-1, 1, 1, 1)
        if self.v:
            return x / (sigma**2 + 1) - output * sigma / (sigma**2 + 1) ** 0.5
        return x - output * sigma


def output(x: Tensor, context: Tensor) -> Tensor:
    """Imitates a UNet. Its output at a cell depends only on x at this cell and on the mean of the text embedding."""
    return torch.tanh(torch.einsum("nchw,kc->nkhw", x, MIXING) + context.mean((1, 2))[:, None, None, None])


class Model:
    """Imitates a model of Forge, which receives sigmas and returns the clean latent.

    `calls` contains the arguments of every call.
    """

    def __init__(self, v: bool = False):
        self.predictor = Predictor(v)
        self.calls: list[dict[str, Any]] = []

    def apply_model(self, x: Tensor, sigma: Tensor, c_crossattn: Tensor, **c: Any) -> Tensor:
        self.calls.append({"x": x, "sigma": sigma, "c_crossattn": c_crossattn, **c})
        scaled = x / (sigma.reshape(-1, 1, 1, 1) ** 2 + 1) ** 0.5
        made = output(scaled, c_crossattn)
        if c.get("control") is not None:
            made = made + c["control"]
        return self.predictor.calculate_denoised(sigma, made, x)


class WebuiWrapper:
    """Imitates the wrapper of AUTOMATIC1111's webui around a model, with the interface of k-diffusion's denoisers."""

    def __init__(self, v: bool = False):
        self.model = Model(v)
        self.inner_model = SimpleNamespace()

    def get_scalings(self, sigma: Tensor) -> tuple[Tensor, ...]:
        c_in = 1 / (sigma**2 + 1) ** 0.5
        return (1 / (sigma**2 + 1), -sigma * c_in, c_in) if self.model.predictor.v else (-sigma, c_in)

    def __call__(self, x: Tensor, sigma: Tensor, cond: dict[str, Any]) -> Tensor:
        return self.model.apply_model(x, sigma, cond["c_crossattn"][0])


def latent(images: int) -> Tensor:
    return torch.randn(images, 4, *STAGE.size, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 5


def prompts(images: int) -> Tensor:
    """Returns text embeddings (2 * images, 7, 3): first for all conds, then for all unconds."""
    return torch.randn(2 * images, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def call(fused: FusedUnet, model: Model, x: Tensor, sigma: float, **c: Any) -> Tensor:
    """Calls `fused` as Forge does. The rows are the conds of all images, then the unconds of all images."""
    rows = torch.cat([x, x])
    marks = [0, 1]
    options = {"cond_or_uncond": marks, "sigmas": torch.full((len(x),), sigma), "cond_mark": torch.zeros(len(rows))}
    options |= {"cond_indices": [], "uncond_indices": [], "other": "kept"}
    c = {"c_crossattn": prompts(len(x)), "transformer_options": options, **c}
    levels = torch.full((len(rows),), sigma, dtype=x.dtype)
    return fused(model.apply_model, {"input": rows, "timestep": levels, "c": c, "cond_or_uncond": marks})


@pytest.mark.parametrize("v", [False, True])
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("views", [1, 3, 16])
def test_the_wrappers_of_forge_and_of_the_webui_give_the_same_prediction(v: bool, images: int, views: int) -> None:
    x, sigma = latent(images), 3.0
    model = Model(v)
    made = call(FusedUnet(parts(stage_run(), views), model.predictor, None, None), model, x, sigma)
    webui = FusedModel(WebuiWrapper(v), parts(stage_run(), views))
    rows = torch.cat([x, x])
    expected = webui(rows, torch.full((len(rows),), sigma, dtype=x.dtype), {"c_crossattn": [prompts(images)]})
    torch.testing.assert_close(made, expected)
    assert made.std() > 0.1


def test_separate_calls_of_cond_and_uncond_fail_if_an_extension_needs_one_call() -> None:
    x, model = latent(1), Model()
    stage_parts = dataclasses.replace(parts(stage_run()), separate_calls_error="both in one call")
    fused = FusedUnet(stage_parts, model.predictor, None, None)
    assert call(fused, model, x, 3.0).shape == (2, *x.shape[1:])
    levels = torch.full((1,), 3.0, dtype=x.dtype)
    alone = {"input": x, "timestep": levels, "c": {"c_crossattn": prompts(1)[:1]}, "cond_or_uncond": [0]}
    with pytest.raises(RuntimeError, match="both in one call"):
        fused(model.apply_model, alone)


@pytest.mark.parametrize("v", [False, True])
def test_the_correction_is_the_derivative_of_denoised_with_respect_to_x_for_a_fixed_output(v: bool) -> None:
    predictor, sigma = Predictor(v), torch.tensor([0.3, 7.0], dtype=torch.float64)
    x, fixed = torch.randn(2, 4, 3, 3, dtype=torch.float64), torch.randn(2, 4, 3, 3, dtype=torch.float64)
    step = torch.rand_like(x)
    change = predictor.calculate_denoised(sigma, fixed, x + step) - predictor.calculate_denoised(sigma, fixed, x)
    torch.testing.assert_close(input_derivative(predictor, sigma) * step, change)


def test_the_correction_of_a_flow_model_is_one_at_every_level() -> None:
    """The correction is the derivative of `denoised` with respect to x for a fixed velocity.

    For a fixed noise, the derivative would be 1 / (1 - sigma), which is infinite at sigma = 1.
    """
    flow = SimpleNamespace(calculate_denoised=lambda sigma, velocity, x: x - sigma.reshape(-1, 1, 1, 1) * velocity)
    assert input_derivative(flow, torch.tensor([1.0, 0.5])).flatten().tolist() == [1.0, 1.0]


@pytest.mark.parametrize("form", [FIVE_AXES, PACKED], ids=["five axes", "packed"])
def test_the_shape_of_the_hosts_latents_does_not_change_the_prediction(form: LatentForm) -> None:
    """The model receives latents in the shape that the host uses. The views are cropped from a latent (B, C, H, W)."""
    model, x = Model(), latent(2)

    def of_host(shown: Tensor, sigma: Tensor, **c: Any) -> Tensor:
        assert shown.ndim == (5 if form is FIVE_AXES else 4)
        assert shown.shape[1] == (4 if form is FIVE_AXES else 16)
        return form.to_host(model.apply_model(form.to_method(shown), sigma, **c))

    plain = call(FusedUnet(parts(stage_run()), model.predictor, None, None), model, x, 3.0)
    fused = FusedUnet(parts(stage_run(), form=form), model.predictor, None, None)
    rows = form.to_host(torch.cat([x, x]))
    options = {"cond_or_uncond": [0, 1]}
    c = {"c_crossattn": prompts(2), "transformer_options": options}
    levels = torch.full((4,), 3.0, dtype=x.dtype)
    made = fused(of_host, {"input": rows, "timestep": levels, "c": c, "cond_or_uncond": [0, 1]})
    assert made.shape == rows.shape
    torch.testing.assert_close(form.to_method(made), plain, rtol=0, atol=0)


@pytest.mark.parametrize("form", [PLAIN, FIVE_AXES, PACKED], ids=["plain", "five axes", "packed"])
def test_converting_a_latent_to_the_hosts_shape_and_back_returns_the_same_latent(form: LatentForm) -> None:
    x = torch.randn(2, 32, 6, 8)
    host = form.to_host(x)
    assert tuple(host.shape[1:]) == form.host_shape(32, (6, 8))
    torch.testing.assert_close(form.to_method(host), x, rtol=0, atol=0)
    assert (form.to_method(host).data_ptr() == host.data_ptr()) != form.copies


def test_dilated_views_are_taken_from_unpacked_latents() -> None:
    """A packed cell contains 2 x 2 cells of the latent.

    A view of every second packed cell would contain two adjacent cells of the latent and skip the next two cells.
    """
    ramp = torch.arange(32.0).expand(1, 1, 32, 32)
    packed = PACKED.to_host(ramp)
    view = PACKED.to_method(packed)[..., ::2, ::2]
    view_with_gaps = PACKED.to_method(packed[..., ::2, ::2])

    def steps(x: Tensor) -> set[float]:
        return set((x[..., 1:] - x[..., :-1]).unique().tolist())

    assert steps(view) == {2.0}
    assert steps(view_with_gaps) == {1.0, 3.0}


def test_the_options_of_a_model_call_match_its_rows() -> None:
    """For each row, the prompt, the mark and the index lists must agree on whether the row is a cond or an uncond."""
    model = Model()
    x = latent(2)
    call(FusedUnet(parts(stage_run(), 3), model.predictor, None, None), model, x, 1.0)
    known = prompts(2)
    for given in model.calls:
        options, rows = given["transformer_options"], len(given["x"])
        assert options["other"] == "kept"
        each = rows // len(options["cond_or_uncond"])
        by_row = [mark for mark in options["cond_or_uncond"] for _ in range(each)]
        is_uncond = [any(bool((row == known[i]).all()) for i in (2, 3)) for row in given["c_crossattn"]]
        assert by_row == [int(uncond) for uncond in is_uncond]
        assert options["cond_mark"].tolist() == by_row
        assert options["cond_indices"] == [i for i, mark in enumerate(by_row) if mark == 0]
        assert options["uncond_indices"] == [i for i, mark in enumerate(by_row) if mark == 1]
        assert len(options["sigmas"]) == each
        assert len(given["sigma"]) == rows


def test_if_a_call_has_only_some_of_the_rows_each_of_its_rows_is_a_chunk() -> None:
    assert marks_of([0, 1], 4, slice(0, 4)) == [0, 1]
    assert marks_of([0, 1], 4, slice(1, 3)) == [0, 1]
    assert marks_of([1, 0], 4, slice(0, 2)) == [1, 1]
    options = {"cond_or_uncond": [0, 1], "uuids": ["a", "b"], "sigmas": None}
    assert options_for(options, [1, 1, 0], torch.ones(6))["uuids"] == ["b", "b", "a"]


def test_the_wrapper_of_another_extension_is_called_with_the_views() -> None:
    model = Model()
    seen: list[tuple[int, ...]] = []

    def other_wrapper(apply_model: Any, args: dict[str, Any]) -> Tensor:
        seen.append(tuple(args["input"].shape[-2:]))
        assert len(args["input"]) == len(args["timestep"]) == len(args["c"]["c_crossattn"])
        return apply_model(args["input"], args["timestep"], **args["c"]) * 2

    x = latent(1)
    plain = call(FusedUnet(parts(stage_run(Weights(0.5, 0.0, 0.5))), model.predictor, None, None), model, x, 2.0)
    made = call(
        FusedUnet(parts(stage_run(Weights(0.5, 0.0, 0.5))), model.predictor, None, None, other_wrapper), model, x, 2.0
    )
    torch.testing.assert_close(made, plain * 2)
    assert set(seen) == {STAGE.window}


def test_an_image_condition_is_cropped_like_the_latent() -> None:
    model = Model()
    x = latent(1)
    rows = torch.cat([x, x])
    call(FusedUnet(parts(stage_run(Weights(0.5, 0.0, 0.5))), model.predictor, None, None), model, x, 2.0, c_concat=rows)
    for given in model.calls:
        torch.testing.assert_close(given["c_concat"], given["x"])


class Numbers:
    """Embeds a pair of numbers by repeating each number."""

    outdim = 2

    def __init__(self, input_key: str):
        self.input_key = input_key

    def __call__(self, numbers: Tensor) -> Tensor:
        return numbers.repeat_interleave(2, dim=1)


def test_sdxls_vector_contains_the_position_of_each_view() -> None:
    keys = ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
    vectors = SizeVectors([Numbers(key) for key in keys], Frame(PLAN.pixels))
    model = Model()
    x = latent(1)
    y = torch.randn(2, 5 + 12, dtype=torch.float64)
    run = stage_run(Weights(0.5, 0.0, 0.5))
    call(FusedUnet(parts(run), model.predictor, vectors, None), model, x, 2.0, y=y)
    given = torch.cat([c["y"] for c in model.calls])
    size = torch.tensor(PLAN.pixels, dtype=torch.float64).repeat_interleave(2)
    corners = [torch.tensor([view.top, view.left]) * CELL for view in run.local for _ in range(2)]
    torch.testing.assert_close(given[:, :5], y[:, :5].repeat(len(run.local), 1))
    torch.testing.assert_close(given[:, 5:9], size.expand(len(given), -1))
    torch.testing.assert_close(given[:, 9:13], torch.stack(corners).double().repeat_interleave(2, dim=1))


class Control:
    """Imitates a control model of Forge. Its output at a cell is the mean of the hint's first channel in this cell.

    `before` is the previous control model of the linked list, whose output is added. If `receives_options` is set,
    `get_control` receives the transformer options as an argument, as in reForge. Otherwise the control model has an
    attribute `transformer_options`, as in Forge.
    """

    manual_cast_dtype = torch.float64
    control_model = None

    def __init__(self, hint: Tensor, before: Any = None, receives_options: bool = False):
        self.cond_hint_original, self.cond_hint, self.previous_controlnet = hint, None, before
        self.asked: list[Sequence[int]] = []
        if not receives_options:
            self.transformer_options: dict[str, Any] = {}

    def get_control(self, x: Tensor, sigma: Tensor, cond: dict[str, Any], chunks: int, *options: Any) -> Tensor:
        assert len(options) == (0 if hasattr(self, "transformer_options") else 1)
        assert self.cond_hint is not None
        assert self.cond_hint.shape == (len(x), 3, CELL * x.shape[-2], CELL * x.shape[-1])
        self.asked.append(x.shape)
        made = F.avg_pool2d(self.cond_hint, CELL)[:, :1].expand(-1, 4, -1, -1)
        before = self.previous_controlnet
        return made if before is None else made + before.get_control(x, sigma, cond, chunks, *options)

    def get_models(self) -> list[str]:
        return ["control"]


def hint(seed: int) -> Tensor:
    """Returns a smooth hint of the size of the base image. Bicubic interpolation enlarges it almost without error."""
    coarse = torch.rand(1, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (CELL * BASE[0], CELL * BASE[1]), mode="bilinear", align_corners=False)


@pytest.mark.parametrize("receives_options", [False, True])
@pytest.mark.parametrize("two", [False, True])
def test_every_view_gets_its_own_part_of_the_hints(two: bool, receives_options: bool) -> None:
    """The model adds the control to its output.

    The difference between the predictions with and without control is therefore -sigma times the hint at the size of
    the stage.
    """
    second = Control(hint(6), None, receives_options) if two else None
    first = Control(hint(5), second, receives_options)
    held = ViewControl(first, STAGE, PLAN)
    assert held.get_control("the whole latent") is None
    assert held.get_models() == ["control"]
    assert [held, *chain(first)] == chain(held)
    model = Model()
    x, sigma = latent(1), 2.0
    run = stage_run(Weights(0.5, 0.0, 0.5))
    c = {"control": None, "control_model": held}
    made = call(FusedUnet(parts(run), model.predictor, None, held), model, x, sigma, **c)
    plain = call(FusedUnet(parts(stage_run(Weights(0.5, 0.0, 0.5))), model.predictor, None, None), model, x, sigma)
    large = sum(
        F.avg_pool2d(F.interpolate(h, [CELL * n for n in STAGE.size], mode="bicubic", align_corners=False), CELL)[:, :1]
        for h in [hint(5), hint(6)][: 1 + two]
    )
    torch.testing.assert_close(made - plain, (-sigma * large).expand(2, 4, -1, -1), atol=0.02, rtol=0)
    assert {tuple(shape[-2:]) for shape in first.asked} == {STAGE.window}


def test_dilated_views_get_the_whole_hint() -> None:
    control = Control(hint(5))
    held = ViewControl(control, STAGE, PLAN)
    run = stage_run()
    views: Sequence[View] = run.dilated
    crops = torch.cat([view.take(latent(1)) for view in views for _ in range(2)])
    cond: dict[str, Any] = {"transformer_options": {"cond_or_uncond": [0, 1] * len(views)}}
    held.add_to(cond, crops, torch.ones(len(crops)), views, slice(0, 2))
    whole = F.avg_pool2d(hint(5), CELL)[:, :1].expand(len(crops), 4, -1, -1)
    assert cond["control"].shape == whole.shape
    torch.testing.assert_close(cond["control"], whole, atol=0.05, rtol=0)


@pytest.mark.parametrize("rows", [None, 4, 2, 1])
def test_every_image_gets_its_own_hint_if_memory_suffices_only_for_some_rows(rows: int | None) -> None:
    """Three images with different hints have six rows. With `rows` rows per call, calls begin at any image."""
    control = Control(torch.cat([hint(seed) for seed in (5, 6, 7)]))
    held = ViewControl(control, STAGE, PLAN)
    model, x, run_parts = Model(), latent(3), parts(stage_run(), views=1)
    run_parts.batches.rows = rows
    made = call(FusedUnet(run_parts, model.predictor, None, held), model, x, 2.0, control=None, control_model=held)
    alone = []
    for n, seed in enumerate((5, 6, 7)):
        held = ViewControl(Control(hint(seed)), STAGE, PLAN)
        fused = FusedUnet(parts(stage_run(), views=1), model.predictor, None, held)
        context = prompts(3)[[n, 3 + n]]
        one = call(fused, model, x[n : n + 1], 2.0, c_crossattn=context, control=None, control_model=held)
        alone.append(one)
    expected = torch.cat([torch.cat([one[:1] for one in alone]), torch.cat([one[1:] for one in alone])])
    torch.testing.assert_close(made, expected)
