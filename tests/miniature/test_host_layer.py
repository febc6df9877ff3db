"""Tests details of `host/`: seeds, timesteps, inputs of the model, infotexts, and presets saved in parallel."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import k_diffusion.sampling
import pytest
import torch
from in_process import BASE, Webui
from modules import rng, script_callbacks, sd_samplers_common, shared
from modules.sd_samplers_cfg_denoiser import CFGDenoiser
from PIL import Image

from lib_demofusion.host import script
from lib_demofusion.host.backends import webui as webui_backend
from lib_demofusion.host.backends import webui_denoiser
from lib_demofusion.host.backends.interface import StageParts
from lib_demofusion.host.backends.webui import Webui as Backend
from lib_demofusion.host.backends.webui import repeated_images
from lib_demofusion.host.common import storage, user_presets
from lib_demofusion.host.common.messages import KEY_STOPPED
from lib_demofusion.host.images import coding, inpainting
from lib_demofusion.host.images.output import StageImage
from lib_demofusion.host.sampling.stage_sampler import SEED_MASK
from lib_demofusion.method.batching import ViewBatches
from lib_demofusion.method.conditioning import Frame
from lib_demofusion.method.plan import make_plan
from lib_demofusion.settings.fields import Settings
from lib_demofusion.settings.presets import BUILT_IN
from lib_demofusion.settings.reading import preset_values

ON = {"enabled": True, "scale": 2, "preset": "Paper"}
THREE = {**ON, "scale": 3}


# Seeds and noise


def test_every_stage_has_its_own_noise_seeds(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    make = rng.ImageRNG.__init__

    def recording(self: Any, shape: Any, seeds: Any, **more: Any) -> None:
        seen.append(tuple(seeds))
        make(self, shape, seeds, **more)

    monkeypatch.setattr(rng.ImageRNG, "__init__", recording)
    webui.job(THREE, batch_size=2)
    # the base pass and two stages, each with two images
    assert [len(seeds) for seeds in seen] == [2, 2, 2]
    assert len({seed for seeds in seen for seed in seeds}) == 6
    assert all(0 <= seed <= SEED_MASK for seeds in seen for seed in seeds)


def test_brownian_noise_has_its_own_seeds_in_every_stage(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    tree = k_diffusion.sampling.BrownianTreeNoiseSampler

    def recording(x: Any, low: Any, high: Any, seed: Any = None, **more: Any) -> Any:
        seen.append(tuple(seed))
        return tree(x, low, high, seed=seed, **more)

    monkeypatch.setattr(k_diffusion.sampling, "BrownianTreeNoiseSampler", recording)
    webui.job(THREE, sampler_name="DPM++ 2M SDE", batch_size=2)
    # the base pass and two stages, each with two images
    assert len(seen) == 3
    assert len({seed for seeds in seen for seed in seeds}) == 6


@pytest.fixture
def drawing_encoder(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the encoder draw from torch's global generator, as an AutoencoderKL does."""

    def draw(picture: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.randn(len(picture), 4, *(n // 8 for n in picture.shape[-2:]))

    monkeypatch.setattr(sd_samplers_common, "images_tensor_to_samples", draw)


@pytest.mark.usefixtures("drawing_encoder")
def test_the_encoder_uses_the_seed_of_each_image() -> None:
    pictures = torch.zeros(2, 3, 64, 64)
    p = SimpleNamespace(seeds=[7, 8], sd_model=shared.sd_model)
    first, second = (coding.encode(p, pictures) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    alone = coding.encode(SimpleNamespace(seeds=[8], sd_model=shared.sd_model), pictures[1:])
    assert torch.equal(alone[0], first[1])


# The timesteps of a stage


@pytest.mark.parametrize(("sampler", "last"), [("DDIM", [1.0]), ("Euler", []), ("DPM++ 2M", [])])
def test_a_stage_runs_the_last_timesteps_of_the_schedule(
    webui: Webui, monkeypatch: pytest.MonkeyPatch, sampler: str, last: list[float]
) -> None:
    """With a denoising strength of 0.5, a stage runs the last five of the ten timesteps.

    The base pass runs the whole schedule. With DDIM, the webui does not evaluate the model at the last timestep of the
    schedule. The parameter `last` contains the timesteps that are not evaluated.
    """
    seen: dict[bool, list[float]] = {False: [], True: []}
    unet = webui.small.unet

    def watched(x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        in_stage = (shared.state.textinfo or "").startswith("DemoFusion")
        if not seen[in_stage] or seen[in_stage][-1] != float(t[0]):
            seen[in_stage].append(float(t[0]))
        return unet(x, t, context)

    monkeypatch.setattr(webui.small, "unet", watched)
    webui.job({**ON, "denoising_strength": 0.5}, sampler_name=sampler, steps=10)
    schedule = seen[False] + last
    assert len(schedule) == 10
    assert seen[True] + last == schedule[-5:]


# The model's inputs


def test_a_stage_uses_the_crop_coordinates_in_the_webuis_settings(
    webui: Webui, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames: list[Frame] = []
    attach = Backend.attach

    def recording(self: Any, denoiser: Any, parts: StageParts) -> None:
        frames.append(parts.frame)
        attach(self, denoiser, parts)

    monkeypatch.setattr(Backend, "attach", recording)
    monkeypatch.setattr(shared.opts, "sdxl_crop_top", 16, raising=False)
    monkeypatch.setattr(shared.opts, "sdxl_crop_left", 40, raising=False)
    webui.job(ON)
    assert frames == [Frame((2 * BASE, 2 * BASE), (16, 40))]


def test_the_base_checkpoint_is_restored_for_the_stages(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend also encodes the prompts again, marks them for ControlNet, and disables the refiner.

    A refiner may have replaced the base checkpoint at the end of the base pass.
    """
    done: list[str] = []
    p = SimpleNamespace(
        refiner_checkpoint_info="refiner",
        disable_extra_networks=True,
        setup_conds=lambda: done.append("encoded"),
    )
    monkeypatch.setattr(webui_backend.controlnet, "mark_prompts", lambda request: done.append("marked"))
    monkeypatch.setattr(webui_backend.sd_models, "SkipWritingToConfig", _Nothing, raising=False)
    monkeypatch.setattr(
        webui_backend.sd_models, "reload_model_weights", lambda info=None: done.append(info), raising=False
    )
    with Backend().base_checkpoint(p, "the base's"):
        assert p.refiner_checkpoint_info is None
        assert done == ["the base's", "encoded", "marked"]
    assert p.refiner_checkpoint_info == "refiner"


class _Nothing:
    """Imitates the webui's context manager `SkipWritingToConfig`. Does nothing."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def test_a_stage_uses_the_current_wrapper_of_the_model() -> None:
    """The webui creates a new wrapper of the model when the checkpoint changes."""

    class Denoiser:
        wrapper = SimpleNamespace(inner_model=SimpleNamespace())

        @property
        def inner_model(self) -> Any:
            return self.wrapper

    denoiser: Any = Denoiser()
    p = SimpleNamespace()
    plan = make_plan(Settings(enabled=True, scale=2), (16, 16))
    run: Any = SimpleNamespace(stage=plan.stages[0])
    parts = StageParts(p, run, plan, ViewBatches(1), Frame(plan.pixels), lambda cells: None)
    webui_denoiser.attach(denoiser, parts, repeated_images)
    first = denoiser.inner_model
    assert denoiser.inner_model is first
    denoiser.wrapper = SimpleNamespace(inner_model=SimpleNamespace())
    assert denoiser.inner_model is not first
    assert denoiser.inner_model.inner is denoiser.wrapper


def test_repeated_images_returns_0_if_a_callback_may_change_single_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without such a callback, `repeated_images` returns the number of images. Here, each image has one prompt."""
    cond = SimpleNamespace(batch=[["one prompt"], ["one prompt"]])
    x = torch.zeros(2, 4, 8, 8)
    assert repeated_images(CFGDenoiser, x, cond) == 2
    monkeypatch.setitem(script_callbacks.callback_map, "callbacks_cfg_denoiser", [lambda params: None])
    assert repeated_images(CFGDenoiser, x, cond) == 0


# Returned images and infotexts


def test_images_of_stages_after_masks_have_their_own_infotexts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The webui adds masks to the list of images, but adds nothing to the list of infotexts.

    For each image, the page shows the infotext with the same index.
    """
    request = SimpleNamespace(is_api=True)
    picture = StageImage(Image.new("RGB", (8, 8)), "text of the stage", 0, {})
    job = SimpleNamespace(request=lambda: request, stage_images=[picture], end=lambda p: None)
    setattr(request, script.JOB, job)
    processed = SimpleNamespace(images=["image", "mask", "composite"], infotexts=["text"], info="the job's text")
    script.end_job(request, processed)
    assert len(processed.infotexts) == len(processed.images) == 4
    assert processed.images[-1] is picture.image
    assert processed.infotexts == ["text", "the job's text", "the job's text", "text of the stage"]


def test_only_the_skipped_iteration_is_reported_as_stopped(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> None:
    """The button "Skip" stops the stages of one iteration. The next iteration finishes its stages."""
    unet, skipped = webui.small.unet, []

    def skipping(*args: Any) -> Any:
        if (shared.state.textinfo or "").startswith("DemoFusion") and not skipped:
            skipped.append(True)
            shared.state.skipped = True
        return unet(*args)

    monkeypatch.setattr(webui.small, "unet", skipping)
    result = webui.job(ON, n_iter=2)
    assert [image.width for image in result.images] == [BASE, 2 * BASE]
    assert KEY_STOPPED in result.infotexts[0]
    assert KEY_STOPPED not in result.infotexts[1]


def test_the_inpainted_area_is_enlarged_by_different_factors_in_width_and_height() -> None:
    """Sizes are rounded to whole cells. In this test of "Only masked", 9 x 16 cells are enlarged to 11 x 20 cells."""
    plan = make_plan(Settings(enabled=True, scale=1.25), (9, 16))
    size = plan.stages[-1].size
    assert size[0] / plan.crop.height != size[1] / plan.crop.width
    mask = Image.new("L", (512, 512), 255)
    p = SimpleNamespace(
        overlay_images=[Image.new("RGBA", (512, 512))], mask_for_overlay=mask, paste_to=(96, 64, 128, 72)
    )
    inpainting.Overlay(p).resize(p, plan, size)
    across, down = size[1] / plan.crop.width, size[0] / plan.crop.height
    assert p.paste_to == (round(96 * across), round(64 * down), round(128 * across), round(72 * down))


# Presets


def test_presets_saved_at_the_same_time_are_all_kept(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, webui: Webui
) -> None:
    stored: dict[str, Any] = {}

    def read(name: str) -> dict[str, Any]:
        found = dict(stored)
        time.sleep(0.02)
        return found

    def write(name: str, values: dict[str, Any]) -> None:
        stored.clear()
        stored.update(values)

    monkeypatch.setattr(storage, "read", read)
    monkeypatch.setattr(storage, "write", write)
    values = preset_values("Fast")
    names = [f"preset {n}" for n in range(8)]
    threads = [threading.Thread(target=user_presets.save, args=(name, values, BUILT_IN)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(stored) == names
