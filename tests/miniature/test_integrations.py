"""Tests jobs together with imitations of other extensions, such as ControlNet and ADetailer.

The imitations are scripts that make the same calls and change the same objects as the real extensions.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from copy import copy
from types import SimpleNamespace
from typing import Any

import controlnet_double
import numpy as np
import pytest
import torch
from controlnet_double import Network, Unit
from in_process import BASE, Webui, sizes
from modules import processing, scripts, shared
from PIL import Image
from reports import Reports

from lib_demofusion.method import stages
from lib_demofusion.settings.fields import SPECS

ON = {"enabled": True, "scale": 2}
THREE = {"enabled": True, "scale": 3}
"""Settings for a final image that is three times as wide and high as the base image."""


class AlwaysOn(scripts.Script):
    """A script of another extension that runs in every job and has no arguments."""

    alwayson = True
    filename = "another.py"


class Detailer(AlwaysOn):
    """Imitates ADetailer: repaints the center of every image by processing a request of its own.

    The hooks of the scripts are called in the same order as by ADetailer. Unlike in ADetailer, the inner request runs
    all scripts.
    """

    def __init__(self) -> None:
        self.found: list[tuple[int, int]] = []
        self.repainted: list[tuple[int, int]] = []

    def title(self) -> str:
        return "ADetailer"

    def postprocess_image(self, p: Any, pp: Any, *args: Any) -> None:
        if getattr(p, "_ad_disabled", False):
            return
        if p.batch_index == 0:
            p.scripts.call("postprocess", copy(p), processing.Processed(p, []))
        self.found.append(pp.image.size)
        pp.image = self._repainted(p, pp.image)
        if p.batch_index == p.batch_size - 1:
            copied = copy(p)
            p.scripts.call("before_process", copied)
            p.scripts.call("process", copied)

    def _repainted(self, p: Any, picture: Image.Image) -> Image.Image:
        corner = (picture.width - BASE) // 2, (picture.height - BASE) // 2
        box = (*corner, corner[0] + BASE, corner[1] + BASE)
        inner = processing.StableDiffusionProcessingImg2Img(
            init_images=[picture.crop(box)],
            denoising_strength=0.5,
            sampler_name=p.sampler_name,
            steps=p.steps,
            seed=p.seed,
            width=BASE,
            height=BASE,
            outpath_samples=p.outpath_samples,
            do_not_save_samples=True,
            extra_generation_params=dict(p.extra_generation_params),
        )
        inner.scripts, inner.script_args = copy(p.scripts), list(p.script_args)
        inner._ad_disabled = inner._ad_inner = True
        made = processing.process_images(copy(inner)).images
        self.repainted += [image.size for image in made]
        picture = picture.copy()
        picture.paste(made[0], corner)
        return picture


class Resize(enum.Enum):
    """Imitates ControlNet's enumeration of modes for resizing a hint."""

    RESIZE = 1


class Hooked(AlwaysOn):
    """Imitates ControlNet: hooks the model in `process` and removes the hook in `postprocess`.

    `left` contains the attributes that the ControlNet unit had at the end of each job.
    """

    def __init__(self, webui: Webui, hint: torch.Tensor | None):
        self.webui, self.hint = webui, hint
        self.latest_network: Network | None = None
        self.left: list[Any] = []
        self.enabled_units = [SimpleNamespace(resize_mode=Resize.RESIZE)]
        self.ui_batch_option_state = ["All ControlNet units for all images in a batch", False]

    def title(self) -> str:
        return "ControlNet"

    def detectmap_proc(self, pixels: np.ndarray, preprocessor: str, mode: Resize, h: int, w: int) -> tuple:
        """Imitates ControlNet's method that resizes a hint (H, W, 3) of bytes. Always uses nearest neighbors."""
        resized = Image.fromarray(pixels).resize((w, h), Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None] / 255, resized

    def process(self, p: Any, *args: Any) -> None:
        if self.hint is None:
            return
        p.sd_model.model.diffusion_model = SimpleNamespace(in_channels=4)
        network = Network([Unit(self.hint)], p.sd_model.model.diffusion_model)
        plain = type(self.webui.small).unet.__get__(self.webui.small)
        self.webui.small.unet = lambda x, t, context: plain(x, t, context) - network.control(x)
        self.latest_network = network

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        if self.latest_network is not None:
            self.left.append(controlnet_double.state(self.latest_network.control_params)[0])
        self.latest_network = None
        self.webui.small.__dict__.pop("unet", None)


@pytest.fixture
def beside(webui: Webui) -> Iterator[Callable[[AlwaysOn], None]]:
    """Returns a function that inserts a script before DemoFusion's script in txt2img and img2img."""
    lists = [runner.alwayson_scripts for runner in (scripts.scripts_txt2img, scripts.scripts_img2img)]
    before = [list(entries) for entries in lists]

    def install(script: AlwaysOn) -> None:
        for entries in lists:
            entries.insert(0, script)

    yield install
    for entries, own in zip(lists, before):
        entries[:] = own
    webui.small.__dict__.pop("unet", None)


class Noted(AlwaysOn):
    """Imitates an extension that writes entries to the infotext and sets attributes of the request."""

    def __init__(self, notes: dict[str, Any], **marks: Any):
        self.notes, self.marks = notes, marks

    def title(self) -> str:
        return "another"

    def process(self, p: Any, *args: Any) -> None:
        p.extra_generation_params.update(self.notes)
        for name, value in self.marks.items():
            setattr(p, name, value)


class Regions(AlwaysOn):
    """Imitates Regional Prompter for Forge Neo, which writes nothing to the infotext.

    The attribute `active` is always true, even if the request does not use Regional Prompter. In the real extension,
    this can happen after a job that failed.
    """

    def __init__(self, calc: str, requested: bool = True):
        self.calc, self.active = calc, True
        # `args_from` is the index of the script's first argument, which switches the script on if it is true. The
        # arguments of a request are 0 (index 0, false) and the dict of DemoFusion (index 1, true)
        self.args_from = int(requested)

    def title(self) -> str:
        return "Regional Prompter"


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=int)


def hint(quadrants: str, side: int = BASE) -> torch.Tensor:
    """Returns a hint that is white in the named quadrants (nw, ne, sw, se) and black elsewhere."""
    made = torch.zeros(1, 3, side, side)
    half = side // 2
    for name in quadrants.split():
        top, left = (half if "s" in name else 0), (half if "e" in name else 0)
        made[..., top : top + half, left : left + half] = 1
    return made


@pytest.mark.parametrize("settings", [ON, THREE, {**ON, "view_batch": 3}], ids=["2x", "3x", "batched"])
@pytest.mark.parametrize("batch", [{}, {"batch_size": 2}])
def test_a_hint_has_an_effect_where_the_hint_is_white(
    webui: Webui, beside: Callable, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], batch: dict[str, int]
) -> None:
    # finish_stage matches the statistics of the whole latent, so a hint in one quadrant would change the others too
    monkeypatch.setattr(stages, "finish_stage", lambda x, *rest: x)
    large = {**batch, "width": 3 * BASE, "height": 3 * BASE, "steps": 2}
    network = Hooked(webui, hint("", 3 * BASE))
    beside(network)
    dark = webui.job(settings, **large)
    network.hint = hint("se", 3 * BASE)
    lit = webui.job(settings, **large)
    side = 3 * BASE * settings["scale"]
    for one, other in zip(dark.images, lit.images):
        assert other.size == (side, side)
        difference = np.abs(pixels(one) - pixels(other)).mean(axis=2)
        # the areas near the borders of the quadrants are left out. The other quadrants change a little, because the
        # blur for dilated views restores the statistics of the latent
        inside = difference[side * 5 // 8 :, side * 5 // 8 :].mean()
        outside = max(difference[: side * 3 // 8].mean(), difference[:, : side * 3 // 8].mean())
        # both are mean differences in levels of 255
        assert inside > 5
        assert inside > 10 * outside
    for left in network.left:
        assert left["_hint_cond"].shape == (1, 3, 3 * BASE, 3 * BASE)


def test_a_job_with_controlnet_does_not_change_later_jobs_without_controlnet(webui: Webui, beside: Callable) -> None:
    plain = webui.job().images[0].tobytes()
    network = Hooked(webui, hint("nw"))
    beside(network)
    assert sizes(webui.job(THREE)) == [3 * BASE]
    network.hint = None
    assert webui.job({}).images[0].tobytes() == plain


@pytest.mark.parametrize("how", ["interrupt", "fail"])
def test_controlnet_units_are_restored_if_a_stage_is_interrupted_or_fails(
    webui: Webui, beside: Callable, how: str, reported: Reports
) -> None:
    """The stage is interrupted or fails at its fourth model call."""
    reported.expect(*["injected"] * (how == "fail"))
    network = Hooked(webui, hint("nw"))
    beside(network)
    control, seen = Network.control, []

    def stopping(self: Network, x: torch.Tensor) -> torch.Tensor:
        if (shared.state.textinfo or "").startswith("DemoFusion 1/"):
            seen.append(len(x))
        if len(seen) == 4:
            if how == "fail":
                raise RuntimeError("injected")
            shared.state.interrupt()
        return control(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Network, "control", stopping)
        result = webui.job(ON)
    assert sizes(result) == [BASE]
    assert len(seen) == 4
    (left,) = network.left
    assert left["_hint_cond"] is network.hint
    assert left["used_hint_cond"] is network.hint


def test_a_controlnet_unit_whose_hint_cannot_be_cropped_is_refused(
    webui: Webui, beside: Callable, reported: Reports
) -> None:
    reported.expect("ControlNet unit 1")
    beside(Hooked(webui, torch.zeros(2, 3, BASE, BASE)))
    result = webui.job(ON, batch_size=1)
    assert sizes(result) == [BASE]
    assert "DemoFusion does not work with ControlNet unit 1 (none, ControlNet)" in result.comments
    assert "DemoFusion: DemoFusion" not in result.comments
    assert "DemoFusion error" in result.infotexts[0]


@pytest.mark.parametrize("batch", [{}, {"batch_size": 2}, {"n_iter": 2}, {"batch_size": 2, "n_iter": 2}])
@pytest.mark.parametrize("img2img", [False, True])
def test_adetailer_repaints_the_final_image(
    webui: Webui, beside: Callable, batch: dict[str, int], img2img: bool
) -> None:
    parameters: dict[str, Any] = {**batch, "sampler_name": "Euler a"}
    if img2img:
        parameters["init_image"] = webui.job(seed=3).images[0]
    settings = {**ON, "return_stages": True}
    without, plain = webui.job(settings, **parameters), webui.job(sampler_name="Euler a")
    detailer = Detailer()
    beside(detailer)
    result = webui.job(settings, **parameters)
    count = batch.get("batch_size", 1) * batch.get("n_iter", 1)
    assert detailer.found == [(2 * BASE, 2 * BASE)] * count
    assert detailer.repainted == [(BASE, BASE)] * count
    assert sizes(result) == sizes(without)
    assert result.infotexts == without.infotexts
    quarter = BASE // 2
    for one, other in zip(result.images[:count], without.images):
        difference = np.abs(pixels(one) - pixels(other)).max(axis=2)
        assert difference[quarter:-quarter, quarter:-quarter].max() > 0
        difference[quarter:-quarter, quarter:-quarter] = 0
        assert difference.max() == 0
    scripts.scripts_txt2img.alwayson_scripts.remove(detailer)
    assert webui.job({}, sampler_name="Euler a").images[0].tobytes() == plain.images[0].tobytes()


def test_hooks_that_adetailer_calls_with_a_copy_of_the_request_do_not_change_job_count(
    webui: Webui, beside: Callable
) -> None:
    counts: list[int] = []

    class Counting(Detailer):
        def _repainted(self, p: Any, picture: Image.Image) -> Image.Image:
            counts.append(shared.state.job_count)
            return picture

    beside(Counting())
    webui.job(ON, n_iter=3)
    assert len(counts) == 3
    assert len(set(counts)) == 1


class Redrawing(AlwaysOn):
    """Runs img2img on finished images by an inner request that has the scripts and arguments of the outer request."""

    def __init__(self, hook: str):
        self.made: list[processing.Processed] = []
        setattr(self, hook, self._redraw)

    def title(self) -> str:
        return "another"

    def _redraw(self, p: Any, pp: Any, *args: Any) -> None:
        if getattr(p, "inner", False):
            return
        image = pp.image if hasattr(pp, "image") else pp.images[0]
        inner = processing.StableDiffusionProcessingImg2Img(
            init_images=[image],
            sampler_name=p.sampler_name,
            steps=p.steps,
            seed=p.seed,
            width=image.width,
            height=image.height,
            do_not_save_samples=True,
        )
        inner.scripts, inner.script_args, inner.inner = p.scripts, p.script_args, True
        self.made.append(processing.process_images(inner))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("hook", ["postprocess_image", "postprocess"])
def test_a_request_inside_another_request_runs_no_stages(webui: Webui, beside: Callable, hook: str, last: bool) -> None:
    """The inner request is made by another script, in its hook `hook`.

    If `last` is set, the other script runs after DemoFusion's script.
    """
    other = Redrawing(hook)
    beside(other)
    if last:
        scripts.scripts_txt2img.alwayson_scripts.reverse()
    result = webui.job({**ON, "img2img_first": True})
    assert sizes(result) == [2 * BASE]
    assert "DemoFusion size" in result.infotexts[0]
    assert [image.size for made in other.made for image in made.images] == [(2 * BASE, 2 * BASE)]
    assert "DemoFusion" not in other.made[0].infotexts[0]


def test_after_a_request_has_failed_a_copy_of_the_request_runs_stages(
    webui: Webui, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[Any] = []
    process_images = processing.process_images

    def remembered(p: Any) -> Any:
        requests.append(p)
        return process_images(p)

    def failing(*args: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(processing, "process_images", remembered)
    with monkeypatch.context() as patch:
        patch.setattr(webui.small, "unet", failing, raising=False)
        with pytest.raises(RuntimeError, match="no memory"):
            webui.job(ON)
    assert sizes(process_images(copy(requests[0]))) == [2 * BASE]


@pytest.mark.parametrize(
    ("script", "refused"),
    [(Regions("Attention"), True), (Regions("Latent"), False), (Regions("Attention", False), False)],
)
def test_regional_prompter_of_forge_neo_is_refused_in_attention_mode(
    webui: Webui, beside: Callable, script: Regions, refused: bool, reported: Reports
) -> None:
    reported.expect(*[ATTENTION] * refused)
    beside(script)
    assert sizes(webui.job(ON)) == [BASE if refused else 2 * BASE]


ATTENTION = "Regional Prompter's attention mode"
TILED = "Tiled Diffusion"
SKIPPED = "ADetailer's 'Skip img2img'"
WHOLE = "ADetailer without 'Inpaint only masked'"
MASKED = "ADetailer inpaint only masked"
"""An entry that ADetailer writes to the infotext. The texts above are names in the messages of DemoFusion."""


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("script", "refused"),
    [
        (Noted({"RP Active": True, "RP Calc Mode": "Attention"}), ATTENTION),
        (Noted({"RP Active": True, "RP Calc Mode": "Latent"}), None),
        (Noted({"RP Active": False, "RP Calc Mode": "Attention"}), None),
        (Noted({"SAG Guidance Scale": 0.75}), "Self Attention Guidance"),
        (Noted({"SCFG Active": True}), "Semantic CFG"),
        (Noted({"SCFG Active": False}), None),
        (Noted({"AnimateDiff": "enable: True, video_length: 16"}), "AnimateDiff"),
        (Noted({TILED: {"Method": "MultiDiffusion"}}), TILED),
        (Noted({f"{TILED} upscaler": "None"}), None),
        (Noted({}, _ad_skip_img2img=True), SKIPPED),
        (Noted({}, _ad_skip_img2img=False), None),
        (Noted({}, _ad_skip_img2img=True, _ad_disabled=True), None),
        (Noted({MASKED: False}), WHOLE),
        (Noted({MASKED: True, f"{MASKED} 2nd": False}), WHOLE),
        (Noted({MASKED: True}), None),
    ],
)
def test_an_extension_that_is_recognized_by_its_infotext_or_by_attributes_of_p_is_refused(
    webui: Webui, beside: Callable, first: bool, script: Noted, refused: str | None, reported: Reports
) -> None:
    """`first` means that the script of the other extension runs before DemoFusion's script."""
    reported.expect(*[refused] * bool(refused))
    beside(script)
    if not first:
        scripts.scripts_txt2img.alwayson_scripts.reverse()
    result = webui.job({**ON, "sigma": 2.0})
    assert sizes(result) == [BASE if refused else 2 * BASE]
    assert (f"DemoFusion does not work with {refused}" in result.comments) == bool(refused)
    # if no stage runs, the infotext contains no settings of DemoFusion
    assert (SPECS["sigma"].infotext in result.infotexts[0]) != bool(refused)
