"""Tests the sizes and crops in the vectors that SDXL receives for a batch of views.

The sizes and crops must be in the right columns and in the order of the views. They must equal the output of the
model's own embedders.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_demofusion.host.backends.interface import StageParts
from lib_demofusion.host.backends.webui_denoiser import FusedModel
from lib_demofusion.method.batching import ViewBatches
from lib_demofusion.method.conditioning import CROP, SIZES, Frame, SizeVectors, number_slots, size_vectors
from lib_demofusion.method.views import LocalView, dilated_views

ORIGINAL, TARGET = SIZES
AESTHETIC = "aesthetic_score"
FINAL = Frame((1536, 1024))


class Numbers:
    """Imitates an embedder of numbers, with `outdim` columns for each number. `calls` counts how often it ran."""

    def __init__(self, input_key: str, outdim: int = 256):
        self.input_key, self.outdim, self.calls = input_key, outdim, 0

    def __call__(self, numbers: Tensor) -> Tensor:
        self.calls += 1
        rates = torch.exp(-torch.arange(self.outdim // 2) / self.outdim)
        angles = numbers.float()[..., None] * rates
        return torch.cat([angles.cos(), angles.sin()], dim=-1).flatten(1)


class Text(SimpleNamespace):
    """Imitates a text embedder, which does not store its number of columns."""

    def __init__(self) -> None:
        super().__init__(input_key="txt")


class Conditioner:
    """Imitates the conditioner of a model.

    Joins `pooled` columns of random numbers, which stand for the text, and the outputs of the embedders of numbers.
    """

    def __init__(self, pooled: int, *embedders: Any):
        self.pooled, self.embedders = pooled, embedders

    def __call__(self, rows: int, **numbers: Sequence[float]) -> Tensor:
        text = torch.randn(rows, self.pooled, generator=torch.Generator().manual_seed(3))
        parts = [e(torch.tensor([numbers[e.input_key]] * rows)) for e in self.embedders if isinstance(e, Numbers)]
        return torch.cat([text, *parts], dim=1)


def base() -> Conditioner:
    return Conditioner(1280, Text(), Text(), Numbers(ORIGINAL), Numbers(CROP), Numbers(TARGET))


def refiner() -> Conditioner:
    return Conditioner(1280, Text(), Numbers(ORIGINAL), Numbers(CROP), Numbers(AESTHETIC))


def no_pooled_text() -> Conditioner:
    return Conditioner(0, Text(), Numbers(ORIGINAL), Numbers(CROP), Numbers(TARGET))


def other_order() -> Conditioner:
    return Conditioner(7, Text(), Numbers(TARGET, 32), Numbers(AESTHETIC, 16), Numbers(CROP, 8), Numbers(ORIGINAL, 64))


LAYOUTS = pytest.mark.parametrize("layout", [base, refiner, no_pooled_text, other_order])
BEFORE = {ORIGINAL: (512, 512), CROP: (0, 0), TARGET: (512, 512), AESTHETIC: (6.0,)}
"""The numbers that the vector of the base image contains."""


@pytest.mark.parametrize(
    ("layout", "width", "expected"),
    [
        (base, 2816, {ORIGINAL: (1280, 1792), CROP: (1792, 2304), TARGET: (2304, 2816)}),
        (refiner, 2560, {ORIGINAL: (1280, 1792), CROP: (1792, 2304), AESTHETIC: (2304, 2560)}),
        (no_pooled_text, 1536, {ORIGINAL: (0, 512), CROP: (512, 1024), TARGET: (1024, 1536)}),
    ],
)
def test_the_columns_of_known_models_are_found(layout: Any, width: int, expected: dict[str, tuple[int, int]]) -> None:
    slots = number_slots(layout().embedders, width)
    assert {key: (columns.start, columns.stop) for key, (_, columns) in slots.items()} == expected


@pytest.mark.parametrize(
    ("embedders", "width"),
    [
        ([], 2816),
        ([Text()], 1280),
        ([Numbers(CROP), Text()], 2816),
        ([Numbers(CROP), Numbers("frames_per_second")], 2816),
        ([Numbers(CROP)], 511),
        ([SimpleNamespace(input_key=CROP)], 2816),
        ([SimpleNamespace(input_keys=[CROP], outdim=256)], 2816),
        ([SimpleNamespace(input_key=None, outdim=256)], 2816),
    ],
)
def test_vectors_with_unknown_columns_are_not_changed(embedders: list[Any], width: int) -> None:
    assert number_slots(embedders, width) == {}
    vector = torch.randn(2, width)
    views = [LocalView(1, 2, 3, 4), LocalView(5, 6, 3, 4)]
    torch.testing.assert_close(
        SizeVectors(embedders, FINAL).for_views(vector, views), vector.repeat(2, 1), rtol=0, atol=0
    )


@LAYOUTS
@pytest.mark.parametrize("rows", [1, 4])
def test_vectors_equal_the_output_of_the_conditioner(layout: Any, rows: int) -> None:
    conditioner = layout()
    views = [LocalView(0, 0, 64, 64), LocalView(13, 70, 64, 64), *dilated_views((192, 128), 2)[:2]]
    crops = [(0, 0), (104, 560), (0, 0), (0, 0)]
    vector = conditioner(rows, **BEFORE)
    given = vector.clone()
    made = SizeVectors(conditioner.embedders, FINAL).for_views(vector, views)
    now = {**BEFORE, ORIGINAL: FINAL.size, TARGET: FINAL.size}
    expected = torch.cat([conditioner(rows, **{**now, CROP: crop}) for crop in crops])
    torch.testing.assert_close(made, expected, rtol=0, atol=0)
    torch.testing.assert_close(vector, given, rtol=0, atol=0)


@LAYOUTS
def test_the_vector_of_a_dilated_view_is_unchanged_if_the_size_is_unchanged(layout: Any) -> None:
    conditioner = layout()
    vector = conditioner(2, **{**BEFORE, CROP: (16, 24)})
    vectors = SizeVectors(conditioner.embedders, Frame((512, 512), (16, 24)))
    torch.testing.assert_close(
        vectors.for_views(vector, dilated_views((64, 64), 2)), vector.repeat(4, 1), rtol=0, atol=0
    )


def test_the_position_of_a_view_is_added_to_the_users_crop() -> None:
    conditioner = base()
    vectors = SizeVectors(conditioner.embedders, Frame((512, 512), (16, 24)))
    vector = conditioner(1, **BEFORE)
    made = vectors.for_views(vector, [LocalView(2, 3, 64, 64)])
    torch.testing.assert_close(made, conditioner(1, **{**BEFORE, CROP: (32, 48)}), rtol=0, atol=0)
    torch.testing.assert_close(vector, conditioner(1, **BEFORE), rtol=0, atol=0)


def test_the_text_columns_of_each_row_are_kept() -> None:
    conditioner = base()
    vector = conditioner(3, **BEFORE)
    vector[1, :1280] = 0
    made = SizeVectors(conditioner.embedders, FINAL).for_views(vector, [LocalView(0, 0, 8, 8), LocalView(8, 0, 8, 8)])
    torch.testing.assert_close(made[:, :1280], vector[:, :1280].repeat(2, 1), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_are_embedded_exactly_and_cast_afterwards(dtype: torch.dtype) -> None:
    conditioner = base()
    vectors = SizeVectors(conditioner.embedders, Frame((4104, 4104)))
    made = vectors.for_views(conditioner(1, **BEFORE).to(dtype), [LocalView(257, 129, 8, 8)])
    now = {ORIGINAL: (4104, 4104), CROP: (2056, 1032), TARGET: (4104, 4104)}
    torch.testing.assert_close(made[:, 1280:], conditioner(1, **now).to(dtype)[:, 1280:], rtol=0, atol=0)


def test_no_value_is_embedded_twice() -> None:
    conditioner = base()
    vectors, vector = SizeVectors(conditioner.embedders, FINAL), torch.zeros(2, 2816)
    for _ in range(3):
        vectors.for_views(vector, [LocalView(0, 0, 8, 8), LocalView(4, 0, 8, 8), LocalView(4, 0, 8, 8)])
    assert [e.calls for e in conditioner.embedders if isinstance(e, Numbers)] == [1, 1, 1]


def test_models_without_a_conditioner_get_no_size_vectors() -> None:
    assert size_vectors(SimpleNamespace(), FINAL) is None
    assert size_vectors(SimpleNamespace(conditioner=None), FINAL) is None


@pytest.mark.parametrize("rows", [slice(0, 4), slice(1, 3)])
def test_the_model_gets_the_vectors_of_its_views(rows: slice) -> None:
    """The text embeddings are repeated for each view.

    `rows` are the rows of x that are evaluated together. If memory is short, they are only some of the four rows.
    """
    conditioner = base()
    seen: list[dict[str, Any]] = []

    class Wrapper:
        inner_model = SimpleNamespace(conditioner=conditioner)

        def __call__(self, crops: Tensor, level: Tensor, cond: dict[str, Any]) -> Tensor:
            seen.append(cond)
            return crops

    views = [LocalView(0, 0, 8, 8), LocalView(8, 4, 8, 8)]

    def denoise(evaluate: Any, x: Tensor, *_: Any) -> Tensor:
        evaluate(torch.cat([view.take(x)[rows] for view in views]), views, rows)
        return x

    cond = {
        "crossattn": torch.randn(4, 5, 6),
        "vector": conditioner(4, **BEFORE),
        "c_concat": [torch.zeros(4, 5, 1, 1)],
    }
    given = {key: value.clone() for key, value in cond.items() if isinstance(value, Tensor)}
    run: Any = SimpleNamespace(denoise=denoise)
    fused = FusedModel(Wrapper(), StageParts(None, run, None, ViewBatches(), FINAL, lambda cells: None))
    fused(torch.randn(4, 4, 16, 16), torch.ones(4), cond)
    now = {**BEFORE, ORIGINAL: FINAL.size, TARGET: FINAL.size}
    expected = torch.cat([conditioner(4, **{**now, CROP: crop})[rows] for crop in ((0, 0), (64, 32))])
    torch.testing.assert_close(seen[0]["vector"], expected, rtol=0, atol=0)
    torch.testing.assert_close(seen[0]["crossattn"], cond["crossattn"][rows].repeat(2, 1, 1), rtol=0, atol=0)
    for key, value in given.items():
        torch.testing.assert_close(cond[key], value, rtol=0, atol=0)


IN_THE_WEBUI = """
import sys, types, torch
webui, root = sys.argv[1:]
sys.path[:0] = [f"{webui}/repositories/generative-models", root]
for name, attribute in (("taming.modules.losses.lpips", "LPIPS"), ("sgm.data", "StableDataModuleFromConfig")):
    sys.modules[name] = types.SimpleNamespace(**{attribute: None})
from sgm.modules.encoders.modules import AbstractEmbModel, ConcatTimestepEmbedderND, GeneralConditioner
from lib_demofusion.method.conditioning import Frame, SizeVectors
from lib_demofusion.method.batching import ViewBatches
from lib_demofusion.method.views import DilatedView, LocalView

class Text(AbstractEmbModel):
    def forward(self, rows):
        torch.manual_seed(1)
        return torch.randn(rows, 7, 12), torch.randn(rows, 33)

def numbers(key):
    embedder = ConcatTimestepEmbedderND(256)
    embedder.input_key = key
    return embedder

def conditioner(last):
    made = GeneralConditioner([])
    made.embedders.extend([Text(), *map(numbers, ("original_size_as_tuple", "crop_coords_top_left", last))])
    made.embedders[0].input_key = "txt"
    for embedder in made.embedders:
        embedder.ucg_rate, embedder.legacy_ucg_val = 0.0, None
    return made

def vector(model, size, crop, zero):
    values = {"original_size_as_tuple": size, "target_size_as_tuple": size, "crop_coords_top_left": crop}
    values["aesthetic_score"] = (6.0,)
    batch = {"txt": 2, **{key: torch.tensor([value] * 2) for key, value in values.items()}}
    return model(batch, force_zero_embeddings=["txt"] if zero else [])["vector"]

for last in ("target_size_as_tuple", "aesthetic_score"):
    for zero in (False, True):
        model = conditioner(last)
        views = [LocalView(3, 200, 64, 64), DilatedView(1, 0, 2, (128, 256)), LocalView(0, 1, 64, 64)]
        vectors = SizeVectors(list(model.embedders), Frame((2048, 4096)))
        made = vectors.for_views(vector(model, (512, 1024), (0, 0), zero), views)
        crops = [(24, 1600), (0, 0), (0, 8)]
        assert torch.equal(made, torch.cat([vector(model, (2048, 4096), crop, zero) for crop in crops])), (last, zero)
print("equal")
"""


@pytest.mark.webui
def test_vectors_equal_the_output_of_the_real_conditioner(request: pytest.FixtureRequest) -> None:
    """Runs a script in the webui's own environment.

    The conditioner and the embedders of numbers are the webui's own classes. The text embedder is an imitation.
    """
    folder = request.config.getoption("--webui")
    if not folder:
        pytest.skip("no webui: use --webui DIR or set SD_WEBUI_DIR")
    python = Path(folder) / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    root = Path(__file__).parents[1]
    command = [str(python), "-c", IN_THE_WEBUI, folder, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["equal"], done.stderr[-2000:]
