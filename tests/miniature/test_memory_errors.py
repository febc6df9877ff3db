"""Tests that no finished image is lost if memory runs out in a part of a job that is not a model call."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from in_process import BASE, Webui, sizes
from modules import shared
from PIL import Image
from reports import Reports

from lib_demofusion.host import stage_loop
from lib_demofusion.host.images import output, upscaling
from lib_demofusion.host.sampling import stage_sampler
from lib_demofusion.method import stages

EVERYTHING = {
    "enabled": True,
    "scale": 3,
    "stages": "every",
    "upscaler": "Lanczos (pixels)",
    "return_stages": True,
    "save_stages": True,
}
"""Settings with which a job decodes, enlarges, encodes, shows and saves an image in every stage."""
SEEDS = itertools.count(5000)
"""Seeds for the jobs. The names of saved images contain the seed, which identifies the images of a job."""

Point = tuple[Callable[[Webui], Any], str]
POINTS: dict[str, Point] = {
    "decoding": (lambda webui: webui.small, "decode"),
    "encoding": (lambda webui: webui.small, "encode"),
    "enlarging an image": (lambda webui: upscaling, "lanczos"),
    "enlarging a latent": (lambda webui: stages, "make_anchor"),
    "noise": (lambda webui: stage_sampler, "StageRun"),
    "the end of a stage": (lambda webui: stages, "finish_stage"),
    "the image of a stage": (lambda webui: output, "to_image"),
    "saving the image of a stage": (lambda webui: output, "_save"),
    "the gallery's copy": (lambda webui: Image.Image, "reduce"),
}
"""For each part of a job: how to get the owner of the failing function, and the name of this function."""


class Failing:
    """Calls the function `real`. Only the call with the index `call`, counted from 0, raises `error` instead."""

    def __init__(self, real: Callable[..., Any], call: int, error: Exception):
        self.real, self.left, self.error = real, call, error
        self.failed = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left == -1:
            self.failed = True
            raise self.error
        return self.real(*args, **kwargs)


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list to which each stage adds its width in pixels when its sampling has finished."""
    widths: list[int] = []
    real = stage_loop.run_stage

    def noticed(p: Any, task: Any, *args: Any) -> torch.Tensor:
        x = real(p, task, *args)
        widths.append(task.stage.pixels[1])
        return x

    monkeypatch.setattr(stage_loop, "run_stage", noticed)
    return widths


@pytest.fixture
def small_gallery(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the gallery show smaller copies of saved images and of grids that have more pixels than the base image."""
    monkeypatch.setattr(output, "SHOWN_PIXELS", BASE * BASE)


@pytest.fixture(params=[torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB"), MemoryError()])
def error(request: pytest.FixtureRequest) -> Exception:
    """Returns an error. Each test runs once with torch's error for a full GPU, and once with Python's MemoryError."""
    return request.param


def saved(webui: Webui, seed: int) -> list[int]:
    """Returns the widths in pixels, in ascending order, of the saved images whose file names contain `seed`."""
    widths = []
    for path in (webui.folder / "txt2img-images").glob(f"*-{seed}*.png"):
        with Image.open(path) as image:
            widths.append(image.width)
    return sorted(widths)


@pytest.mark.usefixtures("small_gallery")
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("call", range(4))
def test_finished_images_are_never_lost(
    webui: Webui,
    monkeypatch: pytest.MonkeyPatch,
    sampled: list[int],
    reported: Reports,
    point: str,
    call: int,
    error: Exception,
) -> None:
    """In a job with stages at 2x and 3x, one call of the function of `point` fails. `call` is the index of this call.

    If the function is called less often, nothing fails.
    """
    owner, name = POINTS[point]
    settings = {**EVERYTHING, "upscaler": "Latent"} if point == "enlarging a latent" else EVERYTHING
    if point == "the gallery's copy":
        # Pillow makes the copy, which needs only the computer's memory
        error = MemoryError()
    failing = Failing(getattr(owner(webui), name), call, error)
    # `Image.reduce` must receive the image as `self`: a lambda in a class does, but an object of `Failing` does not
    monkeypatch.setattr(owner(webui), name, lambda *args, **kwargs: failing(*args, **kwargs), raising=False)
    seed = next(SEEDS)
    result = webui.job(settings, seed=seed, do_not_save_samples=False, from_page=True)
    monkeypatch.undo()
    if not failing.failed:
        assert call > 0, f"the job did not call {name}"
        assert saved(webui, seed) == [BASE, 2 * BASE, 3 * BASE]
        return
    reported.expect(
        "not enough memory for a smaller copy" if point == "the gallery's copy" else str(error) or "MemoryError"
    )
    # the result shows the last sampled stage, or the previous image if this stage could not be finished or decoded
    least = sampled[-1] if sampled else BASE
    if point in ("decoding", "the end of a stage") and sampled:
        least -= BASE
    final = saved(webui, seed)[-1]
    assert final >= least
    # the gallery shows a smaller copy, unless the copy could not be made. Its side is the image's side divided by the
    # smallest integer with which the result is at most BASE
    assert result.images[0].width in (final, -(-final // -(-final // BASE)))
    if point not in ("the gallery's copy", "the image of a stage", "saving the image of a stage"):
        # the image of the last stage is missing, except that it can exist after decoding an earlier image has failed
        assert final < 3 * BASE or point == "decoding"
        assert "failed" in result.comments
        assert str(error).partition(".")[0] in result.infotexts[0]
    if point in ("the image of a stage", "saving the image of a stage"):
        assert "showing " in result.comments
        assert "failed, so its image is missing" in result.infotexts[0]
        assert "last finished image" not in result.comments
    assert len(result.images) == len(result.infotexts)
    # the failure does not change later jobs
    plain = webui.job({}).images[0].tobytes()
    assert plain == webui.job().images[0].tobytes()


@pytest.mark.usefixtures("small_gallery")
def test_the_gallery_gets_a_smaller_copy_of_a_saved_image(webui: Webui) -> None:
    result = webui.job({**EVERYTHING, "scale": 2}, seed=4001, do_not_save_samples=False, from_page=True)
    assert saved(webui, 4001) == [BASE, 2 * BASE]
    assert sizes(result) == [BASE, BASE]
    assert "the gallery shows 64x64; the whole image, 128x128, is saved as" in result.comments
    assert "DemoFusion size: 128 x 128" in result.images[0].info["parameters"]


@pytest.mark.usefixtures("small_gallery")
def test_an_image_that_is_not_saved_keeps_its_size(webui: Webui) -> None:
    result = webui.job(EVERYTHING, from_page=True)
    assert sizes(result) == [3 * BASE, BASE, 2 * BASE]
    assert "gallery" not in result.comments


@pytest.mark.usefixtures("small_gallery")
def test_a_grid_that_is_not_saved_is_shown_smaller(webui: Webui) -> None:
    """The first image is a grid. The second is an image that is not saved either, so it keeps its size.

    Both have 8 times as many pixels as allowed. The sides of the grid are therefore divided by 3, the
    square root of 8 rounded up.
    """
    picture = Image.new("RGB", (4 * BASE, 2 * BASE))
    result = SimpleNamespace(images=[picture, picture.copy()], index_of_first_image=1, comments="")
    output.shrink_for_gallery(result)
    assert sizes(result) == [4 * BASE // 3 + 1, 4 * BASE]


@pytest.fixture
def decodes(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list to which each call of the decoder adds the width of its latent in cells."""
    widths: list[int] = []
    real = webui.small.decode

    def noticed(latents: torch.Tensor) -> torch.Tensor:
        widths.append(latents.shape[-1])
        return real(latents)

    monkeypatch.setattr(webui.small, "decode", noticed, raising=False)
    # live previews would be decoded too
    monkeypatch.setattr(shared.opts, "live_previews_enable", False)
    return widths


def test_only_displayed_or_saved_images_are_decoded(webui: Webui, decodes: list[int]) -> None:
    """If the webui saves no images of a job, the images of the stages are not decoded, even with `save_stages`."""
    webui.job({"enabled": True, "preset": "Paper", "scale": 3, "save_stages": True})
    assert decodes == [3 * BASE // 8]
    decodes.clear()
    webui.job(
        {"enabled": True, "preset": "Paper", "scale": 3, "save_stages": True}, do_not_save_samples=False, seed=4002
    )
    assert decodes == [n * BASE // 8 for n in (1, 2, 3)]
