"""Tests the hints of the ControlNet extension in a stage.

The model of these tests predicts the *control*: the hint that it receives, reduced to the size of its latent (see
`control_of`). The fused prediction must therefore be the control of the hint at the size of the stage.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import controlnet_double
import pytest
import torch
import torch.nn.functional as F
from controlnet_double import CELL, Adapter, Lite, Mode, Network, Unit, control_of, job, state
from torch import Tensor

from lib_demofusion.host.backends import webui_controlnet as controlnet
from lib_demofusion.host.backends.interface import StageParts
from lib_demofusion.host.backends.webui_denoiser import FusedModel
from lib_demofusion.method.batching import ViewBatches
from lib_demofusion.method.conditioning import Frame
from lib_demofusion.method.control_hints import resize_hint
from lib_demofusion.method.plan import make_plan
from lib_demofusion.method.schedule import Weights
from lib_demofusion.method.stage import SamplerTraits, StageRun
from lib_demofusion.method.views import dilated_views
from lib_demofusion.settings.fields import Settings

BASE = (16, 12)
PIXELS = (128, 96)
"""The size of the base image in pixels. BASE is the same size in cells."""
LOCAL, DILATED, BOTH = 0.0, 1.0, 0.4
"""Three values of c2, the weight of the dilated views.

With LOCAL, a model call evaluates only local views. With DILATED, it evaluates only dilated views, and with BOTH, both
kinds.
"""


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def ramp(height: int, width: int) -> Tensor:
    """Returns a hint whose values increase linearly. Resizing such a hint causes errors only at its borders."""
    rows, columns = ((torch.arange(n) + 0.5) / n for n in (height, width))
    return (rows[:, None] * 0.4 + columns * 0.5).expand(1, 3, -1, -1).clone()


class Model:
    """Imitates the host's wrapper around a model with ControlNet.

    The prediction is the control, multiplied by a factor for each row. The cond contains these factors.
    """

    def __init__(self, network: Network):
        self.network = network
        self.inner_model = SimpleNamespace()

    def __call__(self, x: Tensor, level: Tensor, cond: Any) -> Tensor:
        return self.network.control(x) * cond["c_crossattn"][0][:, :, None, None]


class Stage:
    """Makes one model call of a stage. The rows of the call are the conds and unconds of two images."""

    def __init__(self, units: list[Unit], settings: Settings | None = None, views: int = 3):
        self.network = Network(units)
        self.p = job(self.network)
        self.settings = settings or Settings(scale=2)
        self.plan = make_plan(self.settings, BASE)
        self.stage = self.plan.stages[-1]
        self.views = views
        self.factors = torch.tensor([1.0, 2.0, -1.0, 0.5])[:, None]
        self.inner = Model(self.network)

    def fused(self, c2: float) -> Tensor:
        """Makes one model call and returns the fused control (N, 4, H, W).

        The fused control is the fused prediction, divided by the factor of each row.
        """
        hints = controlnet.stage_hints(self.p, self.stage, self.plan)
        empty = torch.zeros(2, 4, *self.stage.size)
        space: Any = SimpleNamespace(read=lambda level: (level, 500.0))
        detector: Any = SimpleNamespace(is_step_start=lambda level: False)
        run = StageRun(self.stage, self.settings, empty, empty, SamplerTraits(space, detector))
        run.before_call(empty, torch.tensor(1.0))
        run.weights = Weights(1.0, c2, 1.0)
        frame, batches = Frame(self.plan.pixels), ViewBatches(self.views)
        parts = StageParts(self.p, run, self.plan, batches, frame, lambda cells: None)
        model = FusedModel(self.inner, parts, hints)
        rows = len(self.factors)
        made = model(torch.zeros(rows, 4, *self.stage.size), torch.ones(rows), {"c_crossattn": [self.factors]})
        return made / self.factors[:, :, None, None]

    def expected(self, hint: Tensor) -> Tensor:
        """Returns the control (N, 4, H, W) of the whole `hint`, after resizing `hint` to the size of the stage."""
        large = resize_hint(hint, tuple(CELL * n for n in self.stage.size))
        return control_of(large).expand(len(self.factors), -1, -1, -1)


def close(made: Tensor, expected: Tensor, border: int = 0, atol: float = 1e-5) -> None:
    inside = (..., slice(border, made.shape[-2] - border), slice(border, made.shape[-1] - border))
    torch.testing.assert_close(made[inside], expected[inside], rtol=0, atol=atol)


@pytest.mark.parametrize("views", [1, 2, 3, 16])
@pytest.mark.parametrize("scale", [2, 2.5, 3])
def test_the_fused_control_of_local_views_is_the_control_of_the_large_hint(scale: float, views: int) -> None:
    hint = randn(1, 3, *PIXELS).sigmoid()
    stage = Stage([Unit(hint)], Settings(scale=scale), views)
    close(stage.fused(LOCAL), stage.expected(hint))


@pytest.mark.parametrize("views", [1, 3, 16])
@pytest.mark.parametrize("scale", [2, 4])
def test_the_fused_control_of_dilated_views_is_the_control_of_the_large_hint(scale: int, views: int) -> None:
    hint = ramp(*PIXELS)
    stage = Stage([Unit(hint)], Settings(scale=scale), views)
    close(stage.fused(DILATED), stage.expected(hint), border=scale)
    close(stage.fused(BOTH), stage.expected(hint), border=scale)


@pytest.mark.parametrize("scale", [1.5, 2.5, 3])
def test_with_a_rounded_shift_the_position_error_of_the_hint_is_at_most_one_pixel(scale: float) -> None:
    """At the scales 2.5 and 3, the cells of a dilated view are not at whole pixels of the hint.

    The shift is therefore rounded. At a scale of 1.5, the shift is exact.
    """
    hint = ramp(*PIXELS)
    stage = Stage([Unit(hint)], Settings(scale=scale))
    change_per_pixel = 0.5 / PIXELS[1] + 0.4 / PIXELS[0]
    close(stage.fused(DILATED), stage.expected(hint), border=4, atol=change_per_pixel)


def test_a_hint_in_the_top_left_quadrant_affects_only_this_quadrant() -> None:
    hint = torch.zeros(1, 3, *PIXELS)
    hint[..., :64, :48] = 1
    made = Stage([Unit(hint)], Settings(scale=2)).fused(BOTH)
    lit = made[..., :15, :11]
    dark = made.clone()
    dark[..., :17, :13] = 0
    assert lit.min() > 0.99
    assert dark.abs().max() < 0.01


def test_the_hint_is_cropped_like_the_base_image() -> None:
    hint = randn(1, 3, *PIXELS).sigmoid()
    stage = Stage([Unit(hint)], Settings(width=192, height=192))
    assert (stage.plan.crop.height, stage.plan.crop.width) == (12, 12)
    close(stage.fused(LOCAL), stage.expected(hint[..., 16:112, :]))


def test_with_another_tile_size_the_fused_control_is_also_the_control_of_the_large_hint() -> None:
    hint = randn(1, 3, *PIXELS).sigmoid()
    stage = Stage([Unit(hint)], Settings(scale=2, tile_size=10))
    close(stage.fused(LOCAL), stage.expected(hint))


def test_the_controls_of_all_units_are_added() -> None:
    one, other = randn(1, 3, *PIXELS).sigmoid(), randn(1, 3, 256, 192).sigmoid()
    stage = Stage([Unit(one), Unit(other)])
    close(stage.fused(LOCAL), stage.expected(one) + stage.expected(other))


def test_the_stages_use_the_hint_of_hires_fix_if_a_unit_has_one() -> None:
    small, large = torch.zeros(1, 3, 64, 48), randn(1, 3, *PIXELS).sigmoid()
    stage = Stage([Unit(small, hr_hint_cond=large)])
    close(stage.fused(LOCAL), stage.expected(large))


def test_the_region_mask_of_a_unit_is_cropped_like_its_hint() -> None:
    hint, mask = torch.ones(1, 3, *PIXELS), torch.zeros(1, 1, *PIXELS)
    mask[..., :64, :] = 1
    made = Stage([Unit(hint, effective_region_mask=mask)]).fused(LOCAL)
    close(made[..., :15, :], torch.ones_like(made[..., :15, :]), atol=0.01)
    close(made[..., 17:, :], torch.zeros_like(made[..., 17:, :]), atol=0.01)


@pytest.mark.parametrize("views", [1, 3])
def test_a_t2i_adapter_computes_its_cached_control_again_for_every_batch(views: int) -> None:
    hint = randn(1, 3, *PIXELS).sigmoid()
    unit = Unit(hint, "T2I_Adapter", control_model=Adapter())
    stage = Stage([unit], views=views)
    stage.network.control(torch.zeros(2, 4, *BASE))
    close(stage.fused(LOCAL), stage.expected(hint))
    torch.testing.assert_close(stage.network.control(torch.zeros(1, 4, *BASE)), control_of(hint))


@pytest.mark.parametrize("views", [1, 3])
def test_the_layers_of_a_lllite_unit_get_the_crops_of_the_views(views: int) -> None:
    hint = randn(1, 3, *PIXELS).sigmoid()
    stage = Stage([Unit(hint, "Controlllite", control_model=Lite(hint))], views=views)
    before = stage.network.control(torch.zeros(1, 4, *BASE))
    close(stage.fused(LOCAL), stage.expected(hint))
    torch.testing.assert_close(stage.network.control(torch.zeros(1, 4, *BASE)), before)


def test_a_hint_that_controlnet_encodes_is_encoded_once_and_cropped_like_the_latent() -> None:
    hint = randn(1, 3, *PIXELS).sigmoid()
    stage = Stage([Unit(hint, preprocessor="tile_colorfix")])
    latent = F.interpolate(control_of(hint), stage.stage.size, mode="bicubic", align_corners=False)
    for c2 in (LOCAL, DILATED, BOTH):
        close(stage.fused(c2), latent.expand(4, -1, -1, -1))


@pytest.mark.parametrize("views", [1, 2, 3])
def test_every_view_gets_the_whole_reference_image_at_the_size_of_the_base_image(views: int) -> None:
    hint = torch.full((1, 3, *PIXELS), 0.25)
    stage = Stage([Unit(hint, "AttentionInjection", "reference_only")], views=views)
    made = stage.fused(BOTH)
    close(made, torch.full_like(made, 0.25))
    assert {shape[1:] for shape in stage.network.seen} == {(4, *BASE)}


@pytest.mark.parametrize("kind", ["IPAdapter", "ReVision", "T2I_StyleAdapter"])
def test_units_with_an_embedding_as_hint_are_not_changed(kind: str) -> None:
    unit = Unit({"image_embeds": torch.zeros(1, 8)}, kind)
    stage = Stage([unit])
    before = state([unit])
    assert controlnet.refusal(stage.p) is None
    stage.fused(BOTH)
    after = state([unit])
    # a model call sets this attribute, as in the extension
    assert after[0].pop("used_hint_cond") is unit.hint_cond
    before[0].pop("used_hint_cond")
    assert after == before


@pytest.mark.parametrize("kind", ["ControlNet", "T2I_Adapter", "Controlllite", "colorfix", "AttentionInjection"])
@pytest.mark.parametrize("fail", [None, RuntimeError, KeyboardInterrupt])
def test_units_are_restored_after_a_batch_even_if_it_fails(kind: str, fail: type[BaseException] | None) -> None:
    hint, mask = randn(1, 3, *PIXELS).sigmoid(), torch.ones(1, 1, *PIXELS)
    model = {"T2I_Adapter": Adapter(), "Controlllite": Lite(hint)}.get(kind)
    preprocessor = "tile_colorfix" if kind == "colorfix" else "none"
    kind = "ControlNet" if kind == "colorfix" else kind
    values = {"hr_hint_cond": randn(1, 3, *PIXELS).sigmoid(), "effective_region_mask": mask}
    values |= {"used_hint_cond": hint, "used_hint_cond_latent": control_of(hint), "used_hint_inpaint_hijack": mask}
    unit = Unit(hint, kind, preprocessor, **values, **({"control_model": model} if model else {}))
    stage = Stage([unit])
    before = state([unit])[0]
    layers = dict(vars(model.modules["layer"])) if isinstance(model, Lite) else {}
    hints = controlnet.stage_hints(stage.p, stage.stage, stage.plan)
    views = make_views(stage)

    def evaluate() -> None:
        with hints.for_views(views, 4):
            stage.network.control(torch.zeros(4 * len(views), 4, *BASE))
            if fail is not None:
                raise fail

    with pytest.raises(fail) if fail is not None else nullcontext():
        evaluate()
    after = state([unit])[0]
    assert all(after[name] is before[name] for name in before)
    if isinstance(model, Lite):
        assert all(vars(model.modules["layer"])[name] is value for name, value in layers.items())
    if isinstance(model, Adapter):
        assert model.control is None


def make_views(stage: Stage) -> list[Any]:
    return list(dilated_views(stage.stage.size, stage.stage.factor))


def test_hints_are_cropped_for_one_batch_at_a_time_and_not_for_all_views_at_once() -> None:
    hint = randn(1, 3, *PIXELS).sigmoid()
    stage = Stage([Unit(hint)], Settings(scale=4), views=2)
    stage.fused(BOTH)
    assert max(shape[0] for shape in stage.network.seen) == 2 * len(stage.factors)


class Resizing(controlnet_double.ControlNetScript):
    """Imitates a version of the extension that resizes hints with its method `detectmap_proc`."""

    def __init__(self, network: Network, channels: int = 3):
        super().__init__(network)
        self.enabled_units = [SimpleNamespace(resize_mode=Mode.OUTER_FIT)]
        self.channels = channels
        self.asked: list[Any] = []

    def detectmap_proc(self, pixels: Any, module: str, mode: Any, height: int, width: int) -> Any:
        self.asked.append((pixels.shape, pixels.dtype.name, module, mode, height, width))
        return torch.full((1, self.channels, height, width), 0.5), None


def test_hints_are_resized_with_the_method_detectmap_proc_of_the_extension() -> None:
    hint = (randn(1, 3, *PIXELS) > 0).float()
    stage = Stage([Unit(hint, preprocessor="canny")])
    found = stage.p.scripts.alwayson_scripts[-1] = Resizing(stage.network)
    made = stage.fused(LOCAL)
    close(made, torch.full_like(made, 0.5))
    assert found.asked == [((*PIXELS, 3), "uint8", "canny", Mode.RESIZE, 256, 192)]


def test_hints_are_resized_without_the_extension_if_its_method_cannot_be_used() -> None:
    hint = randn(1, 3, *PIXELS).sigmoid()
    stage = Stage([Unit(hint)])
    stage.p.scripts.alwayson_scripts[-1] = Resizing(stage.network, channels=1)
    close(stage.fused(LOCAL), stage.expected(hint))
    stage.p.scripts.alwayson_scripts[-1].enabled_units = []
    close(stage.fused(LOCAL), stage.expected(hint))


def test_without_the_extension_the_functions_for_controlnet_do_nothing() -> None:
    stage = Stage([])
    for p in (job(None), SimpleNamespace(), SimpleNamespace(scripts=None)):
        assert controlnet.refusal(p) is None
        assert controlnet.units(p) == []
        controlnet.mark_prompts(p)
        with controlnet.stage_hints(p, stage.stage, stage.plan).for_views(make_views(stage), 2):
            pass


def test_a_hook_on_the_unet_of_another_model_is_reported_and_its_hints_are_not_cropped() -> None:
    stage = Stage([Unit(randn(1, 3, *PIXELS))])
    stage.network.model = SimpleNamespace(in_channels=4)
    stage.network.control_params[0].used_hint_cond = randn(1, 3, *PIXELS)
    with controlnet.stage_hints(stage.p, stage.stage, stage.plan).for_views(make_views(stage), 2):
        assert stage.network.control_params[0].hint_cond.shape[-2:] == PIXELS
    assert "ControlNet has no effect in the stages" in stage.p.comments[0]


HINT = torch.zeros(1, 3, *PIXELS)
SPARSE = type("SparseCtrl", (), {})
REFUSED = {
    "inpaint_only": Unit(torch.zeros(1, 4, *PIXELS), preprocessor="inpaint_only+lama"),
    "several hints": Unit(torch.zeros(4, 3, *PIXELS), preprocessor="canny"),
    "sparse": Unit(HINT, control_model=SimpleNamespace(control_model=SPARSE())),
    "unknown": Unit(HINT, "StableSR"),
    "adapter": Unit(HINT, "T2I_Adapter", "depth", cfg_injection=True),
    "region": Unit([], "IPAdapter", effective_region_mask=torch.ones(1, 1, *PIXELS)),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_units_that_do_not_work_with_views_are_refused_with_their_number_and_kind(name: str) -> None:
    unit = REFUSED[name]
    reason = controlnet.refusal(job(Network([Unit(HINT), unit])))
    assert reason is not None
    assert reason.startswith(f"ControlNet unit 2 ({unit.preprocessor['name']}, {unit.control_model_type.name}): ")
    assert "\n" not in reason


def test_a_masked_hint_on_an_inpainting_checkpoint_is_refused() -> None:
    p = job(Network([Unit(torch.zeros(1, 4, *PIXELS), preprocessor="inpaint")]))
    assert controlnet.refusal(p) is None
    p.sd_model.model.diffusion_model.in_channels = 9
    assert "inpainting checkpoint" in (controlnet.refusal(p) or "")


def test_the_option_for_one_image_per_unit_and_style_alignment_are_refused() -> None:
    network = Network([Unit(HINT), Unit(HINT)])
    p = job(network)
    assert controlnet.refusal(p) is None
    p.scripts.alwayson_scripts[-1].ui_batch_option_state[0] = "Each ControlNet unit for each image in a batch"
    assert "for each image" in (controlnet.refusal(p) or "")
    p = job(network)
    network.attention_auto_machine.name = "StyleAlign"
    assert "style alignment" in (controlnet.refusal(p) or "")


def test_prompts_are_marked_with_the_function_of_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    marked: list[Any] = []
    p = job(Network([Unit(HINT)]))
    p.c, p.uc = "cond", "uncond"
    module = sys.modules[Network.__module__]
    monkeypatch.setattr(module, "mark_prompt_context", lambda x, positive: marked.append((x, positive)), raising=False)
    controlnet.mark_prompts(p)
    assert marked == [("cond", True), ("uncond", False)]
