"""Tests the backend for Forge's family with imitations of the webui's objects.

The tests cover patches of the UNet, reserved memory, refused features, and values that are restored after a stage.
"""

from __future__ import annotations

import contextlib
import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from modules import extra_networks, processing, sd_models, sd_samplers, shared

from lib_demofusion.host import backends
from lib_demofusion.host.backends import families, forge, forge_refusals
from lib_demofusion.host.backends.forge import Forge, reserve_for_views
from lib_demofusion.host.backends.forge_controlnet import ViewControl
from lib_demofusion.host.backends.forge_refusals import WRAPPER
from lib_demofusion.host.backends.forge_unet import CHANNELS, FusedUnet, vectors_of
from lib_demofusion.host.backends.interface import StageParts
from lib_demofusion.host.images import coding, inpainting
from lib_demofusion.host.integrations import refusals
from lib_demofusion.host.panel import line
from lib_demofusion.host.panel.tab import TabValues
from lib_demofusion.host.progress import timing
from lib_demofusion.method.batching import ViewBatches
from lib_demofusion.method.conditioning import Frame
from lib_demofusion.method.filters import for_preview
from lib_demofusion.method.plan import make_plan
from lib_demofusion.method.sampler_steps import StepDetector
from lib_demofusion.method.views import LocalView
from lib_demofusion.settings.fields import Settings

PLAN = make_plan(Settings(enabled=True, scale=4, stages="4"), (16, 16))
STAGE = PLAN.stages[-1]
"""The only stage of PLAN. It enlarges a base image of 16x16 cells to 64x64 cells."""


class Unet:
    """Imitates Forge's object for a UNet with patches. Its clones share the model.

    The memory that it requires is one byte for each cell of each batch row.
    """

    def __init__(self, model: Any, options: dict[str, Any] | None = None, controls: Any = None):
        self.model, self.model_options, self.controlnet_linked_list = model, options or {}, controls

    def clone(self) -> Unet:
        return Unet(self.model, dict(self.model_options), self.controlnet_linked_list)

    def memory_required(self, shape: list[int]) -> float:
        return float(shape[0] * shape[2] * shape[3])

    def set_model_unet_function_wrapper(self, wrapper: Any) -> None:
        self.model_options[WRAPPER] = wrapper


class Objects(SimpleNamespace):
    """Imitates the `forge_objects` of a loaded checkpoint."""

    def shallow_copy(self) -> Objects:
        return Objects(**vars(self))


class Scripts:
    """Adds the options `patch` to the UNet before every sampling, as Forge's built-in extensions do.

    `seen` contains the arguments of each call.
    """

    alwayson_scripts: tuple[Any, ...] = ()

    def __init__(self, patch: dict[str, Any] | None = None):
        self.patch, self.seen = patch or {}, []

    def process_before_every_sampling(self, p: Any, **what: Any) -> None:
        self.seen.append(what)
        unet = p.sd_model.forge_objects.unet.clone()
        unet.model_options.update(self.patch)
        p.sd_model.forge_objects.unet = unet


@pytest.fixture(autouse=True)
def merged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, float]]:
    """Records the calls of `apply_token_merging`, the webui's function that patches the UNet before sampling."""
    seen: list[tuple[Any, float]] = []
    monkeypatch.setattr(sd_models, "apply_token_merging", lambda *args: seen.append(args), raising=False)
    return seen


def sample_euler(model: Any, x: Any, sigmas: Any, callback: Any = None, s_churn: float = 0.0) -> Any:
    """Has the name of k-diffusion's function, and the parameter `s_churn`."""


def sample_euler_ancestral(model: Any, x: Any, sigmas: Any, eta: float = 1.0, noise_sampler: Any = None) -> Any:
    """Imitates Forge Neo's function, which reads `_is_const` to recognize flow models and supports them."""
    return model._is_const


def sample_dpmpp_2s_ancestral_RF(model: Any, x: Any, sigmas: Any, eta: float = 1.0, noise_sampler: Any = None) -> Any:
    """Has the name of Forge Neo's function, which works only for flow models."""


def sample_unipc(model: Any, x: Any, sigmas: Any) -> Any:
    """Has the name of Forge Neo's function, which passes a scaled copy of x to the model."""


def sample_Kohaku_LoNyu_Yog(model: Any, x: Any, sigmas: Any, eta: Any = None, noise_sampler: Any = None) -> Any:
    """Has the name of Forge Neo's function, which adds noise without scaling the image down."""


SAMPLERS = {
    "Euler": sample_euler,
    "Euler a": sample_euler_ancestral,
    "DPM++ 2s a RF": sample_dpmpp_2s_ancestral_RF,
    "UniPC": sample_unipc,
    "Kohaku LoNyu Yog": sample_Kohaku_LoNyu_Yog,
}


@pytest.fixture(autouse=True)
def samplers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the webui create samplers whose functions are in SAMPLERS."""

    def create_sampler(name: str, model: Any) -> Any:
        return SimpleNamespace(func=SAMPLERS[name], eta_option_field="eta_ancestral")

    monkeypatch.setattr(sd_samplers, "create_sampler", create_sampler)
    monkeypatch.setattr(sd_samplers, "find_sampler_config", SAMPLERS.get)


@pytest.fixture
def cleaned(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Records the UNets that were passed to `sampling_cleanup`, which Forge calls after sampling."""
    seen: list[Any] = []
    monkeypatch.setattr(forge, "sampling_cleanup", seen.append)
    return seen


def request(scripts: Any, **model: Any) -> Any:
    """Returns a request whose loaded model is a diffusion model. `model` contains further attributes of this model."""
    unet = Unet(SimpleNamespace(predictor=Diffusion()))
    objects = Objects(unet=unet)
    sd_model = SimpleNamespace(forge_objects=objects, forge_objects_after_applying_lora=objects, **model)
    return SimpleNamespace(
        sd_model=sd_model,
        scripts=scripts,
        seeds=[7],
        get_conds=lambda: ("cond", "uncond"),
        get_token_merging_ratio=lambda: 0,
        sampler_name="Euler",
        width=16 * 8,
        height=24 * 8,
        distilled_cfg_scale=3.5,
        eta=None,
        extra_generation_params={},
        refiner_checkpoint_info=None,
    )


def sampling(p: Any, views: int = 4) -> Any:
    """Returns the context that the backend provides for sampling STAGE. A model call evaluates up to `views` views."""
    anchor = torch.zeros(1, 4, *STAGE.size)
    return Forge().sampling(p, STAGE, views, anchor, torch.ones_like(anchor))


def test_a_stage_uses_its_own_copy_of_the_unet_with_the_patches_of_extensions(cleaned: list[Any]) -> None:
    scripts = Scripts({"by an extension": True})
    p = request(scripts)
    before = p.sd_model.forge_objects
    with sampling(p):
        unet = p.sd_model.forge_objects.unet
        assert unet.model_options["by an extension"]
        assert scripts.seen[0]["x"].shape[-2:] == STAGE.size
        assert (scripts.seen[0]["c"], scripts.seen[0]["uc"]) == ("cond", "uncond")
    assert p.sd_model.forge_objects is before
    assert before.unet.model_options == {}
    assert cleaned == [unet]


@pytest.mark.parametrize(("base", "hires"), [({"lora": ["L"]}, {}), ({}, {"lora": ["L"]}), ({"lora": ["L"]},) * 2])
def test_the_stages_use_the_extra_networks_of_the_main_prompt_after_hires_fix(
    monkeypatch: pytest.MonkeyPatch, base: dict[str, Any], hires: dict[str, Any]
) -> None:
    p = request(Scripts())
    p.extra_network_data, p.hr_extra_network_data = base, hires
    p.enable_hr, p.disable_extra_networks = True, False
    monkeypatch.setattr(shared, "sd_model", SimpleNamespace(sd_checkpoint_info="the base's"))
    extra_networks.activate(p, p.hr_extra_network_data)
    with Forge().base_checkpoint(p, "the base's"):
        assert extra_networks.active == base


def test_the_backend_finds_the_unet_of_a_loaded_model() -> None:
    p = request(Scripts())
    assert Forge().unet(p.sd_model) is p.sd_model.forge_objects.unet.model
    assert Forge().unet(SimpleNamespace()) is None


def test_random_numbers_of_extensions_depend_on_seed_and_stage(cleaned: list[Any]) -> None:
    """Extensions draw from torch's global generator. Every stage sets the seed, so two runs draw equal numbers."""
    plan = make_plan(Settings(enabled=True, scale=3), (16, 16))

    def drawn(stage: Any, seed: int) -> float:
        p = request(Scripts())
        p.seeds = [seed]
        anchor = torch.zeros(1, 4, *stage.size)
        torch.rand(3)
        with Forge().sampling(p, stage, 1, anchor, anchor):
            return float(torch.rand(()))

    numbers = [drawn(stage, seed) for stage in plan.stages for seed in (7, 70)]
    assert numbers == [drawn(stage, seed) for stage in plan.stages for seed in (7, 70)]
    assert len(plan.stages) == 2
    assert len(set(numbers)) == 4


def test_everything_is_restored_if_a_stage_fails_or_is_stopped(cleaned: list[Any]) -> None:
    p = request(Scripts())
    before = p.sd_model.forge_objects
    with pytest.raises(KeyboardInterrupt), sampling(p):
        raise KeyboardInterrupt
    assert p.sd_model.forge_objects is before
    assert len(cleaned) == 1


def test_memory_is_reserved_for_views_and_not_for_the_whole_latent(cleaned: list[Any]) -> None:
    p = request(Scripts())
    # one cond and one uncond
    whole = [2, 4, *STAGE.size]
    with sampling(p, views=3):
        unet = p.sd_model.forge_objects.unet
        height, width = STAGE.window
        assert unet.memory_required(whole) == 2 * 3 * height * width
        assert unet.model_options[forge.ESTIMATE](whole) == 2 * 3 * height * width
    assert p.sd_model.forge_objects.unet.memory_required(whole) == 2 * STAGE.size[0] * STAGE.size[1]


def test_a_memory_estimate_of_another_extension_is_called_with_the_size_of_a_view() -> None:
    """The other extension's function receives the shape of the input, and returns a number of bytes."""
    unet = Unet(None, {forge.ESTIMATE: lambda shape: 1000.0 + shape[2]})
    reserve_for_views(unet, (4, *STAGE.window), 1)
    assert unet.model_options[forge.ESTIMATE]([2, 4, 999, 999]) == 1000 + STAGE.window[0]


def test_the_function_for_token_merging_is_called_even_with_a_ratio_of_0(
    cleaned: list[Any], merged: list[tuple[Any, float]]
) -> None:
    """In Forge Neo, this function also applies Epsilon Scaling."""
    p = request(Scripts())
    with sampling(p):
        assert merged == [(p.sd_model, 0)]


def stateless(apply_model: Any, args: dict[str, Any]) -> Any:
    """Imitates a wrapper of the model that keeps no data between calls."""
    args["c"]["strength"] = 0.5
    return apply_model(args["input"], args["timestep"], **args["c"]) * 0.5


def scaled_by(factor: float, inner: Any = None) -> Any:
    """Returns a wrapper that scales the output of the wrapper `inner`, or of `stateless` if `inner` is None."""

    def wrapper(apply_model: Any, args: dict[str, Any]) -> Any:
        wrapped = stateless if inner is None else inner
        return wrapped(apply_model, args) * factor

    return wrapper


def forecasting() -> Any:
    """Returns a wrapper that keeps the outputs of all calls, and returns the first output every time."""
    history: list[Any] = []

    def wrapper(apply_model: Any, args: dict[str, Any]) -> Any:
        history.append(stateless(apply_model, args))
        return history[0]

    return wrapper


def counting() -> Any:
    """Returns a wrapper whose output depends on the number of its calls."""
    calls = 0

    def wrapper(apply_model: Any, args: dict[str, Any]) -> Any:
        nonlocal calls
        calls += 1
        return stateless(apply_model, args) * calls

    return wrapper


class Cache:
    """Provides wrappers that belong to an object: the object itself, and two of its methods.

    `reading` only reads attributes of the object. The other two wrappers also change attributes.
    """

    factor = 0.5

    def __init__(self) -> None:
        self.last: dict[str, Any] = {}
        self.strength = 0.5

    def __call__(self, apply_model: Any, args: dict[str, Any]) -> Any:
        """Returns the output of the first call every time."""
        return self.last.setdefault("output", stateless(apply_model, args))

    def reading(self, apply_model: Any, args: dict[str, Any]) -> Any:
        """Returns an output that depends only on the arguments and on constant attributes."""
        return stateless(apply_model, args) * self.strength * self.factor

    def remembering(self, apply_model: Any, args: dict[str, Any]) -> Any:
        """Keeps the last output in an attribute."""
        self.output = stateless(apply_model, args)
        return self.output


@pytest.mark.parametrize(
    ("wrapper", "refused"),
    [
        (stateless, False),
        (scaled_by(0.5), False),
        (scaled_by(0.5, Cache().reading), False),
        (functools.partial(stateless), False),
        (forecasting(), True),
        (counting(), True),
        (Cache(), True),
        (Cache().remembering, True),
        (scaled_by(0.5, forecasting()), True),
        (functools.partial(Cache()), True),
    ],
)
def test_a_wrapper_that_keeps_data_between_calls_is_refused(cleaned: list[Any], wrapper: Any, refused: bool) -> None:
    """Such a wrapper would compute the output for a view from other views. Spectrum and step caches are examples."""
    p = request(Scripts({WRAPPER: wrapper}))
    expected = (
        pytest.raises(RuntimeError, match="it computes a step from earlier steps")
        if refused
        else contextlib.nullcontext()
    )
    with expected, sampling(p):
        pass


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ({WRAPPER: forecasting()}, "test_forge_backend: it computes a step from earlier steps"),
        ({"conditioning_modifiers": [sampling]}, "test_forge_backend: it changes the prompt's conditioning"),
        ({WRAPPER: stateless}, None),
    ],
)
def test_a_patch_is_refused_after_the_base_pass(patch: dict[str, Any], message: str | None) -> None:
    """Before the base pass, nothing is refused, because the UNet still has the patches of an earlier job."""
    p = request(Scripts(patch))
    p.scripts.process_before_every_sampling(p)
    p.sampler = None
    assert Forge().refusal(p) is None
    p.sampler = object()
    found = Forge().refusal(p)
    assert found is None if message is None else message in str(found), found


def test_a_cache_that_is_activated_when_the_stage_begins_is_refused(cleaned: list[Any]) -> None:
    """Anima TeaCache writes its infotext key before each sampling pass, and the backend looks for this key.

    If the uploaded image is the base image, the first sampling pass is the first stage. So the key does not exist
    before this stage begins.
    """
    p = request(Scripts())
    assert Forge().refusal(p) is None
    own = p.scripts.process_before_every_sampling

    def activating(p: Any, **what: Any) -> None:
        own(p, **what)
        p.extra_generation_params["Anima TeaCache thresh"] = 0.05

    p.scripts.process_before_every_sampling = activating
    with pytest.raises(RuntimeError, match="Anima TeaCache: it computes a step from earlier steps"), sampling(p):
        pass


def test_a_patch_that_changes_the_conditioning_is_refused(cleaned: list[Any]) -> None:
    p = request(Scripts({"conditioning_modifiers": [sampling]}))
    with pytest.raises(RuntimeError, match="test_forge_backend: it changes the prompt's conditioning"), sampling(p):
        pass


def test_attach_replaces_the_wrapper_of_the_unet_and_the_first_control_model() -> None:
    class Denoiser:
        pass

    control = SimpleNamespace(cond_hint_original=torch.zeros(1, 3, 128, 128), previous_controlnet=None)
    unet = Unet(SimpleNamespace(predictor="the schedule"), {WRAPPER: "another extension's"}, control)
    denoiser = Denoiser()
    model = SimpleNamespace(forge_objects=Objects(unet=unet))
    denoiser.inner_model = SimpleNamespace(inner_model=model)  # type: ignore[attr-defined]
    run = SimpleNamespace(stage=STAGE)
    parts = StageParts(request(None), run, PLAN, ViewBatches(1), Frame(PLAN.pixels), lambda cells: None)  # type: ignore[arg-type]
    Forge().attach(denoiser, parts)
    assert isinstance(unet.model_options[WRAPPER], FusedUnet)
    assert unet.model_options[WRAPPER]._inner == "another extension's"
    assert isinstance(unet.controlnet_linked_list, ViewControl)
    assert type(denoiser).__name__ == "StageDenoiser"


class Denoiser:
    """Imitates the CFGDenoiser of a sampler in Forge."""

    def __init__(self) -> None:
        self.sampler = SimpleNamespace(last_latent=None)
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        self.seen.append(x.clone())
        return x


@pytest.mark.parametrize("form", [families.PLAIN, families.FIVE_AXES, families.PACKED])
def test_changes_of_the_latent_are_written_to_the_samplers_x(form: Any) -> None:
    """`before_call` receives the latent x in the shape of `method/`, and the sampler's own tensor as `shown`.

    `before_call` changes x in place. In some families of models, x is a copy of the sampler's tensor. Then the backend
    must copy the changes to the sampler's tensor.
    """

    class Run:
        shown: Any = None
        detector = StepDetector()

        def before_call(self, x: torch.Tensor, level: torch.Tensor, shown: torch.Tensor) -> None:
            assert x.shape == (1, 32, 8, 8)
            self.shown = shown
            x += torch.arange(64.0).reshape(8, 8)

    run, denoiser = Run(), Denoiser()
    forge.attach_denoiser(denoiser, SimpleNamespace(run=run, form=form))  # type: ignore[arg-type]
    x = form.to_host(torch.zeros(1, 32, 8, 8))
    denoiser.forward(x, torch.ones(1))
    assert run.shown is x
    expected = torch.arange(64.0).reshape(8, 8).expand(1, 32, 8, 8)
    torch.testing.assert_close(form.to_method(denoiser.seen[0]), expected, rtol=0, atol=0)
    torch.testing.assert_close(form.to_method(x), expected, rtol=0, atol=0)


class Diffusion:
    """Imitates the schedule of a diffusion model (backend/modules/k_prediction.py): x = latent + sigma * noise."""

    def noise_scaling(
        self, sigma: torch.Tensor, noise: torch.Tensor, latent_image: torch.Tensor, max_denoise: bool = False
    ) -> torch.Tensor:
        return latent_image + sigma * noise


class Flow(Diffusion):
    """Imitates the schedule of a flow model: x = (1 - sigma) * latent + sigma * noise."""

    def noise_scaling(
        self, sigma: torch.Tensor, noise: torch.Tensor, latent_image: torch.Tensor, max_denoise: bool = False
    ) -> torch.Tensor:
        return sigma * noise + (1.0 - sigma) * latent_image


def engine(name: str = "FakeInitialModel", schedule: Any = None, **flags: bool) -> Any:
    """Returns a loaded model whose class has the name `name`. `flags` contains further attributes of the model."""
    unet = Unet(SimpleNamespace(predictor=schedule or Diffusion()))
    return type(name, (SimpleNamespace,), {})(forge_objects=Objects(unet=unet), **flags)


def of_reforge(**flags: bool) -> Any:
    """Returns a loaded model of reForge. Its schedule is still the flow schedule that an earlier job selected."""
    return SimpleNamespace(forge_objects=Objects(unet=Unet(SimpleNamespace(model_sampling=Flow()))), **flags)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (engine("StableDiffusion"), None),
        (engine("StableDiffusion2"), None),
        (engine("StableDiffusionXL"), None),
        (engine("OfTomorrow", is_sd1=True), None),
        (of_reforge(is_sdxl=True), None),
        (SimpleNamespace(), None),
        (None, None),
        (of_reforge(is_sd3=True), "Stable Diffusion 3: this kind of model is not supported"),
        (engine("StableDiffusionXLRefiner", is_sdxl=True), "the SDXL refiner: an SDXL refiner cannot"),
        (engine("PiD", Flow()), "PiD: this checkpoint only enlarges images of other models"),
        (engine("Wan", Flow()), "Wan: this checkpoint makes videos; choose the checkpoint of an image model"),
        (engine("OfTomorrow", Flow()), "OfTomorrow: this kind of model is not supported"),
        *((engine(name, Flow()), None) for name in ("StableDiffusionXL", "StableDiffusion3", "Mugen", "Flux")),
        *((engine(name, Flow()), None) for name in ("ZImage", "Anima", "Flux2")),
    ],
)
def test_a_model_of_an_unsupported_kind_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, model: Any, message: str | None
) -> None:
    """Before a model is loaded, the webui's model is None or an object without attributes. Both are accepted.

    OfTomorrow is the class of a model that the extension does not know.
    """
    monkeypatch.setattr(refusals, "host", Forge)
    reason = refusals.reason(refusals.Situation(model))
    assert reason is None if message is None else (reason or "").startswith(message)


@pytest.mark.parametrize(
    ("data", "pending"),
    [
        ({"forge_loading_parameters": {"checkpoint": "b"}, "forge_hash": "{'checkpoint': 'a'}"}, True),
        ({"forge_loading_parameters": {"checkpoint": "a"}, "forge_hash": "{'checkpoint': 'a'}"}, False),
        ({"forge_loading_parameters": {}, "forge_hash": ""}, False),
        ({}, False),
    ],
)
def test_a_selected_checkpoint_that_is_not_loaded_yet_is_pending(
    monkeypatch: pytest.MonkeyPatch, data: dict[str, Any], pending: bool
) -> None:
    """Forge and Forge Neo load a selected checkpoint when you press Generate.

    Until then, the panel's summary line must not describe the checkpoint that is still loaded.
    """
    model = engine("PiD", Flow())
    monkeypatch.setattr(sd_models, "model_data", SimpleNamespace(sd_model=model, **data))
    for module in (backends, line, refusals):
        monkeypatch.setattr(module, "host", Forge)
    assert Forge().is_pending() is pending
    assert timing.loaded_model() is (None if pending else model)
    text = "".join([*line.refusal(TabValues()), *line.pending_checkpoint()])
    assert (line.NOT_LOADED in text, "PiD" in text) == (pending, not pending)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("multidiffusion_enabled", "MultiDiffusion Integrated"),
        ("sag_enabled", "SelfAttentionGuidance Integrated"),
        ("stylealign_enabled", "StyleAlign Integrated"),
        ("spec_w", "Spectrum Integrated"),
        ("forge_couple", "Forge Couple"),
    ],
)
def test_features_that_are_enabled_in_the_infotext_are_refused_by_name(key: str, name: str) -> None:
    p = request(Scripts())
    p.extra_generation_params = {key: True}
    assert name in (Forge().refusal(p) or "")
    p.extra_generation_params = {key: False}
    assert Forge().refusal(p) is None


@pytest.mark.parametrize(("on", "hires", "refused"), [(True, False, True), (False, False, False), (True, True, False)])
def test_pid_is_refused_if_pid_would_run(on: bool, hires: bool, refused: bool) -> None:
    """PiD (sd_forge_pid in Forge Neo) writes nothing to the infotext, and disables itself with hires fix."""
    entry = SimpleNamespace(title=lambda: "PiD Integrated", args_from=2)
    p = request(SimpleNamespace(alwayson_scripts=[entry]))
    p.script_args, p.enable_hr = (0, True, on, "", "pid.safetensors"), hires
    assert ("PiD Integrated" in (Forge().refusal(p) or "")) == refused


@pytest.mark.parametrize("leading", [(4,), (1, 4)])
def test_masks_are_resized_with_and_without_a_batch_axis(leading: tuple[int, ...]) -> None:
    """In Forge Neo, masks have a batch axis (modules/processing.py of Forge Neo)."""
    mask = torch.zeros(*leading, *PLAN.base)
    mask[..., :8] = 1
    latent = torch.ones(1, 4, *PLAN.base)
    p = SimpleNamespace(mask=mask, nmask=1 - mask, init_latent=latent, mask_round=True)
    with inpainting.masks_at(p, PLAN, STAGE.size):
        assert p.mask.shape == (*leading, *STAGE.size)
        assert p.mask.mean() == p.nmask.mean() == 0.5
    assert p.mask is mask


@pytest.mark.parametrize(
    ("name", "churn", "eta", "on_sd", "on_flow"),
    [
        ("Euler", 0.0, None, None, None),
        ("Euler", 3.0, None, None, "Sigma churn"),
        ("Euler a", 0.0, None, None, None),
        ("DPM++ 2s a RF", 0.0, None, "for flow models", None),
        ("UniPC", 0.0, None, None, "scales the latent for another schedule"),
        ("Kohaku LoNyu Yog", 0.0, None, None, "adds noise without scaling the image down"),
        ("of another extension", 0.0, None, None, None),
    ],
)
def test_samplers_that_cannot_run_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, churn: float, eta: float | None, on_sd: str | None, on_flow: str | None
) -> None:
    """`on_sd` is the message for a diffusion model, and `on_flow` for a flow model. None means: the sampler can run."""
    monkeypatch.setattr(shared.opts, "s_churn", churn, raising=False)
    for schedule, message in ((Diffusion(), on_sd), (Flow(), on_flow)):
        p = request(Scripts())
        p.sampler_name, p.eta = name, eta
        p.sd_model = engine("StableDiffusionXL", schedule)
        found = Forge().refusal(p)
        assert found is None if message is None else message in (found or "")
        # "Sigma churn" is a setting, which can be changed, so its message does not name the sampler
        assert message in (None, "Sigma churn") or name in (found or "")


SIZE = {"width": 128, "height": 192}
"""The size of the base image in `request`, in pixels."""


@pytest.mark.parametrize("kind", ["no size", "named sizes", "any names"])
def test_stages_use_the_shift_of_the_base_pass(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """After hires fix, a flow model's schedule has the shift of the hires pass. The backend sets the shift again.

    Some of Forge Neo's engines (the classes of loaded models) also need the size of the base image. The shift 3.5 is
    `distilled_cfg_scale` in `request`. `kind` is the form of the parameters of the engine's function `set_shift`.
    """
    seen: list[dict[str, Any]] = []
    p = request(None)
    p.sd_model.set_shift = {
        "no size": lambda shift: seen.append({"shift": shift}),
        "named sizes": lambda shift, width, height: seen.append({"shift": shift, "width": width, "height": height}),
        "any names": lambda shift, **sizes: seen.append({"shift": shift, **sizes}),
    }[kind]
    monkeypatch.setattr(shared, "sd_model", SimpleNamespace(sd_checkpoint_info="one"), raising=False)
    with Forge().base_checkpoint(p, "one"):
        assert seen == [{"shift": 3.5, **({} if kind == "no size" else SIZE)}]


@pytest.mark.parametrize(
    ("known", "named"),
    [
        ({"fp32_unet": False, "fp32_vae": False}, ("--fp32-unet", "--fp32-vae")),
        ({"all_in_fp32": False, "vae_in_fp32": False}, ("--all-in-fp32", "--vae-in-fp32")),
        (None, ("--all-in-fp32", "--vae-in-fp32")),
    ],
    ids=["Forge Neo", "Forge", "reForge"],
)
def test_messages_name_the_flags_for_float32_that_the_webui_has(
    monkeypatch: pytest.MonkeyPatch, known: dict[str, bool] | None, named: tuple[str, str]
) -> None:
    monkeypatch.setattr(forge, "flags", known and SimpleNamespace(**known))
    assert Forge().fp32_flags() == named


class Edits(SimpleNamespace):
    """Imitates an engine for editing images. It stores encoded images and uses them as reference images."""

    def __init__(self) -> None:
        super().__init__(ini_latent=None, ref_latents=[])

    def encode(self, x: torch.Tensor) -> None:
        self.ini_latent = x
        self.ref_latents.append(x)
        forge_refusals.dynamic_args.ref_latents = [x]


@pytest.fixture
def dynamic_args(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns an imitation of Forge Neo's `dynamic_args`, which contains the model's reference images."""
    arguments = SimpleNamespace(ref_latents=[], nunchaku=False)
    monkeypatch.setattr(forge_refusals, "dynamic_args", arguments)
    return arguments


def test_the_engine_does_not_keep_images_that_a_stage_encodes(dynamic_args: Any) -> None:
    """Otherwise the next job would use the encoded image of a stage as a reference image."""
    model = Edits()
    kept = model.ref_latents
    with contextlib.suppress(KeyError), Forge().encoding(SimpleNamespace(sd_model=model)):
        model.encode(torch.ones(1))
        raise KeyError
    assert (model.ini_latent, model.ref_latents, dynamic_args.ref_latents) == (None, [], [])
    assert model.ref_latents is kept
    model.encode(torch.zeros(1))
    with Forge().encoding(SimpleNamespace(sd_model=model)):
        model.encode(torch.ones(1))
    assert [float(x) for x in (model.ini_latent, *model.ref_latents, *dynamic_args.ref_latents)] == [0, 0, 0]


DIT = families.Family("Some DiT", flow=True, transformer=True)
FIVE = families.Family("Some video DiT", flow=True, transformer=True, form=families.FIVE_AXES)
ANIMA = families.BY_ENGINE["Anima"]


@pytest.mark.parametrize(
    ("change", "family", "message"),
    [
        (lambda p, args: None, DIT, None),
        (lambda p, args: (args.ref_latents.append(torch.ones(1)), setattr(p, "sampler", None)), DIT, None),
        (lambda p, args: args.ref_latents.append(torch.ones(1)), DIT, "reference images of Some DiT"),
        (lambda p, args: args.ref_latents.append(torch.ones(1)), DIT, "whole reference; remove them, or choose"),
        (lambda p, args: args.ref_latents.append(torch.ones(1)), ANIMA, "switch off [Anima] Enable Reference"),
        (lambda p, args: setattr(p, "mask", torch.ones(1)), FIVE, "inpainting with Some video DiT"),
        (lambda p, args: setattr(p, "mask", torch.ones(1)), FIVE, "latents; remove the mask"),
        (lambda p, args: setattr(p, "mask", torch.ones(1)), DIT, None),
        (lambda p, args: setattr(args, "nunchaku", True), DIT, "Nunchaku's Cache Threshold"),
    ],
)
def test_features_that_do_not_work_on_transformers_are_refused(
    monkeypatch: pytest.MonkeyPatch, dynamic_args: Any, change: Any, family: Any, message: str | None
) -> None:
    """`change` changes the request and Forge Neo's `dynamic_args`. Without `message`, the job is not refused."""
    monkeypatch.setattr(shared.opts, "svdq_cache_threshold", 0.12, raising=False)
    p = request(Scripts())
    p.sampler = "of the base pass"
    change(p, dynamic_args)
    found = forge_refusals.refusal(p, family)
    assert found is None if message is None else message in (found or "")


def test_sizes_of_mugen_are_multiples_of_16_pixels() -> None:
    """Mugen's VAE packs 2 x 2 cells. It would pad a latent of 13 x 13 cells, so the image would get an empty border."""
    plan = make_plan(Settings(enabled=True, scale=1.625), (8, 8), families.BY_ENGINE["Mugen"].unit_cells)
    assert plan.pixels == (112, 112)
    assert plan.notes == ("104x104 is rounded to 112x112, multiples of 16 pixels",)


def test_controlnet_units_are_refused_on_transformers(dynamic_args: Any) -> None:
    entry = SimpleNamespace(title=lambda: "ControlNet", current_params={0: "a unit"})
    p = request(SimpleNamespace(alwayson_scripts=[entry]))
    found = forge_refusals.refusal(p, DIT) or ""
    assert "ControlNet on Some DiT" in found
    assert "; switch all ControlNet units off" in found


def test_memory_is_reserved_for_views_in_the_shape_of_the_webuis_latent(
    cleaned: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This family packs 2x2 cells: the webui's latent has four times as many channels, and half the height and width.

    Memory is reserved for three views, each with a cond and an uncond.
    """
    monkeypatch.setitem(families.BY_ENGINE, "SimpleNamespace", families.Family("A", form=families.PACKED))
    p = request(Scripts())
    seen: list[Any] = []
    p.sd_model.forge_objects.unet.model_options[forge.ESTIMATE] = seen.append
    anchor = torch.zeros(1, 32, *STAGE.size)
    with Forge().sampling(p, STAGE, 3, anchor, anchor):
        unet = p.sd_model.forge_objects.unet
        unet.memory_required([2, 128, 99, 99])
        assert seen == [[2 * 3, 128, STAGE.window[0] // 2, STAGE.window[1] // 2]]
        assert p.scripts.seen[0]["x"].shape == (1, 128, STAGE.size[0] // 2, STAGE.size[1] // 2)


@pytest.mark.parametrize(("name", "refused"), [("base", False), ("another", True)])
def test_another_hires_checkpoint_is_refused(name: str, refused: bool) -> None:
    p = request(Scripts())
    p.sd_model_name, p.hr_checkpoint_info = "base", SimpleNamespace(name_for_extra=name)
    assert ("the hires checkpoint another" in (Forge().refusal(p) or "")) == refused


def test_the_refiner_is_refused() -> None:
    p = request(Scripts())
    p.refiner_checkpoint_info = "another"
    assert "the refiner" in (Forge().refusal(p) or "")


@pytest.mark.parametrize(("mode", "refused"), [("SD3", True), ("Flux", True), ("Aura Flow", True), ("Discrete", False)])
def test_flow_sampling_is_refused_in_reforge(mode: str, refused: bool) -> None:
    """In reForge, some modes of Advanced Model Sampling select flow sampling. The mode is in the infotext."""
    p = request(Scripts())
    p.extra_generation_params = {"advanced_sampling_enabled": True, "advanced_sampling_mode": mode}
    assert (f"Advanced Model Sampling in the mode {mode}" in (Forge().refusal(p) or "")) == refused


class ControlNetPatcher:
    """Has the name of Forge's class for ControlNets, whose hint can be cropped."""


class ControlLLLitePatcher:
    """Has the name of Forge's class for ControlLLLite models, which patch the attention with the whole hint."""


@pytest.mark.parametrize(
    ("preprocessor", "model", "mask", "message"),
    [
        ("canny", ControlNetPatcher(), None, None),
        ("inpaint_only", ControlNetPatcher(), None, "pastes"),
        ("reference_only", None, None, "reference"),
        ("canny", ControlLLLitePatcher(), None, "ControlLLLite"),
        ("canny", ControlNetPatcher(), torch.ones(1), "mask"),
    ],
)
def test_units_whose_hint_cannot_be_cropped_are_refused(
    preprocessor: str, model: Any, mask: Any, message: str | None
) -> None:
    unit = SimpleNamespace(preprocessor=SimpleNamespace(name=preprocessor), model=model, control_mask=mask)
    # the key 1 is an index, so messages call this unit "unit 2"
    entry = SimpleNamespace(title=lambda: "ControlNet", current_params={1: unit})
    p = request(SimpleNamespace(alwayson_scripts=[entry]))
    found = Forge().refusal(p)
    assert found is None if message is None else (message in (found or "") and "unit 2" in (found or ""))


def test_no_stage_runs_if_the_checkpoint_of_the_base_image_is_no_longer_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "sd_model", SimpleNamespace(sd_checkpoint_info="one"), raising=False)
    with pytest.raises(RuntimeError, match="cannot load it again"), Forge().base_checkpoint(None, "another"):
        pass
    with Forge().base_checkpoint(request(None), "one"):
        pass


class Schedule:
    """Imitates Forge's object with the noise levels of a model."""

    def __init__(self) -> None:
        self.sigmas = torch.tensor([0.1, 14.0])

    def set_sigmas(self, sigmas: torch.Tensor) -> None:
        self.sigmas = sigmas


@pytest.mark.parametrize("model", [{"model_config": SimpleNamespace(ztsnr=True)}, {"ztsnr": True}, {}])
def test_stages_use_the_noise_levels_of_the_base_pass(monkeypatch: pytest.MonkeyPatch, model: dict[str, Any]) -> None:
    """With zero terminal SNR, the webui changes the noise levels only during the base pass.

    Depending on the webui, the flag `ztsnr` is an attribute of the model or of its configuration.
    """
    rescaled = torch.tensor([0.1, 4500.0])
    monkeypatch.setattr(processing, "rescale_zero_terminal_snr_sigmas", lambda sigmas: rescaled, raising=False)
    monkeypatch.setattr(shared, "sd_model", SimpleNamespace(sd_checkpoint_info="one"), raising=False)
    p, schedule = request(None, **model), Schedule()
    p.sd_model.forge_objects.unet.model = SimpleNamespace(predictor=schedule)
    before = schedule.sigmas
    with contextlib.suppress(KeyError), Forge().base_checkpoint(p, "one"):
        assert (schedule.sigmas is rescaled) == bool(model)
        raise KeyError
    assert schedule.sigmas is before


def test_the_sizes_and_crops_for_sdxl_are_embedded_as_in_forge() -> None:
    """Forge embeds each of the six numbers separately, height before width (backend/diffusion_engine/sdxl.py)."""

    def embedder(numbers: torch.Tensor) -> torch.Tensor:
        return numbers[:, None].expand(-1, CHANNELS)

    frame = Frame((256, 512), (8, 16))
    vectors = vectors_of(SimpleNamespace(embedder=embedder), frame, sized=True)
    assert vectors is not None
    y = torch.randn(1, 1280 + 6 * CHANNELS)
    made = vectors.for_views(y, [LocalView(2, 3, 16, 16)])
    torch.testing.assert_close(made[:, :1280], y[:, :1280])
    numbers = made[0, 1280:].reshape(6, CHANNELS)
    assert numbers[:, 0].tolist() == numbers[:, -1].tolist() == [256, 512, 8 + 2 * 8, 16 + 3 * 8, 256, 512]


def test_decoded_images_of_a_video_vae_have_no_time_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Forge Neo, Wan's VAE decodes latents (B, C, 1, h, w) to images (B, 1, 3, H, W)."""
    seen = []

    class Samples(list):
        already_decoded = True

    def decode(model: Any, x: torch.Tensor, **how: Any) -> Samples:
        seen.append(tuple(x.shape))
        return Samples(torch.zeros(len(x), 1, 3, 16, 16))

    monkeypatch.setattr(coding, "host", lambda: SimpleNamespace(family=lambda model: FIVE))
    monkeypatch.setattr(processing, "decode_latent_batch", decode)
    made = coding.decode(SimpleNamespace(sd_model=None, extra_generation_params={}), torch.zeros(2, 16, 2, 2))
    assert seen == [(2, 16, 1, 2, 2)]
    assert [tuple(sample.shape) for sample in made] == [(3, 16, 16)] * 2
    assert made.already_decoded


@pytest.mark.parametrize("leading", [(2, 16), (2, 16, 1), (1, 128)])
def test_latents_of_every_shape_are_shrunk_for_a_preview(leading: tuple[int, ...]) -> None:
    """A preview has at most 128 cells per side. `leading` contains the sizes of all axes before height and width."""
    latent = torch.randn(*leading, 300, 150)
    small = for_preview(latent)
    assert small.shape == (*leading, 128, 64)
    flat = F.interpolate(
        latent.reshape(leading[0], leading[1], 300, 150), size=(128, 64), mode="bilinear", antialias=True
    )
    torch.testing.assert_close(small.reshape_as(flat), flat)
    assert for_preview(latent[..., :64, :64]).shape == (*leading, 64, 64)
