"""Tests that no grid is made that is too large to be saved. If saving the grid failed, the job would return no images.

A grid is too large if a side exceeds the limit of its image format, 65500 pixels for JPEG and 16383 for WebP, or if the
grid has more pixels than the webui's setting "Maximum image size" allows.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from in_process import Webui
from modules import processing, shared

from lib_demofusion.host.images import output


def job(**values: Any) -> Any:
    """Returns the attributes that `grid_problem` reads, for a job of two images."""
    return SimpleNamespace(batch_size=2, n_iter=1, do_not_save_grid=False, is_api=False, **values)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the webui save grids as JPEG. Returns a function that changes the webui's settings."""

    def change(**values: Any) -> None:
        for name, value in values.items():
            monkeypatch.setattr(shared.opts, name, value)

    change(grid_save=True, grid_format="jpg")
    return change


@pytest.mark.parametrize(
    ("format", "side", "fails_on_page", "fails_in_api"),
    [
        ("png", 40000, False, False),
        # the width of the grid is 2 * `side`. For a job from the page, the webui saves a grid as PNG if its width
        # exceeds 65535 pixels (JPEG) or 16383 pixels (WebP)
        ("jpg", 32750, False, False),
        ("jpg", 32752, True, True),
        ("jpeg", 32768, False, True),
        ("webp", 8191, False, False),
        ("webp", 8192, False, True),
    ],
)
def test_no_grid_is_made_if_the_image_format_cannot_store_the_grid(
    settings: Any, monkeypatch: pytest.MonkeyPatch, format: str, side: int, fails_on_page: bool, fails_in_api: bool
) -> None:
    settings(grid_save=False, return_grid=True, samples_format=format)
    p = job()
    p.is_api = True
    assert bool(output.grid_problem(p, (side, 8))) == fails_in_api
    settings(grid_save=True, return_grid=False, grid_format=format)
    p.is_api = False
    assert bool(output.grid_problem(p, (side, 8))) == fails_on_page


def test_a_grid_that_is_not_requested_is_not_checked(settings: Any) -> None:
    p = job()
    assert output.grid_problem(p, (32752, 8))
    p.do_not_save_grid = True
    assert output.grid_problem(p, (32752, 8)) is None
    p.do_not_save_grid = False
    settings(grid_save=False, return_grid=False)
    assert output.grid_problem(p, (32752, 8)) is None


def test_no_grid_is_made_that_exceeds_the_setting_maximum_image_size(settings: Any) -> None:
    settings(grid_format="png")
    p = job()
    assert output.grid_problem(p, (10000, 10000)) is None
    assert output.grid_problem(p, (16384, 16384)) == (
        'no grid was made, because its 32768x16384 pixels are more than 200 megapixels ("Maximum image size")'
    )
    p.batch_size = 1
    assert output.grid_problem(p, (16384, 16384)) is None
    settings(grid_only_if_multiple=False)
    assert output.grid_problem(p, (16384, 16384))
    settings(img_max_size_mp=300)
    assert output.grid_problem(p, (16384, 16384)) is None


def test_the_size_of_a_grid_includes_masks(settings: Any) -> None:
    p = job(mask_for_overlay=object())
    assert output.grid_problem(p, (20000, 8)) is None
    settings(return_mask=True, return_mask_composite=True)
    # the two images, their masks and the composites make two rows of three, so the width is 65520 pixels
    assert output.grid_problem(p, (21840, 8))


@pytest.mark.parametrize(("limit", "made"), [(100, False), (1000, True)])
def test_a_job_returns_its_images_even_if_its_grid_would_be_too_large(
    webui: Webui, settings: Any, monkeypatch: pytest.MonkeyPatch, limit: int, made: bool
) -> None:
    """The test replaces JPEG's limit by `limit`. The grid of two images has 256 pixels in width.

    If the grid would be too large, DemoFusion sets `do_not_save_grid`, so the webui makes no grid. When the job ends,
    DemoFusion restores the attribute.
    """
    monkeypatch.setitem(output.LONGEST_SIDE, "jpg", limit)
    seen: list[bool] = []

    def watched(p: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(not p.do_not_save_grid)
        requests.append(p)
        return original(p, *args, **kwargs)

    requests: list[Any] = []
    original = processing.Processed
    monkeypatch.setattr(processing, "Processed", watched)
    result = webui.job({"enabled": True, "scale": 2}, batch_size=2)
    assert seen[-1] == made
    assert ("no grid was made" in result.comments) != made
    assert len(result.images) == 2
    assert requests[-1].do_not_save_grid is False
