"""Runs jobs of the stand-in for the webui, which is in trial/webui, within the test process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import launch
import pytest
from modules import jobs, paths_internal, processing, scripts, sd_models, shared
from PIL import Image

BASE = 64
"""Side of a base image in pixels."""


class Webui:
    """Runs jobs of txt2img and img2img in the stand-in with the model `small`. `folder` is the webui's data folder."""

    def __init__(self, folder: Path, small: Any):
        self.folder = folder
        self.small = small
        shared.cmd_opts.disable_console_progressbars = True
        launch.prepare(folder, small)
        self.page = launch.build()

    def job(
        self,
        settings: dict[str, Any] | list[Any] | None = None,
        init_image: Image.Image | None = None,
        from_page: bool = False,
        **parameters: Any,
    ) -> processing.Processed:
        """Runs one job and returns its result. The job comes from the API, or from the page if `from_page` is set.

        `settings` is a dict of DemoFusion's fields, or a list of arguments for the scripts. If `settings` is None, the
        job runs without scripts, and so without DemoFusion. If `init_image` is given, the job is an img2img job.
        `parameters` are attributes of the webui's processing object. They replace the defaults in `request`.
        """
        args = settings if isinstance(settings, list) else [settings or {}]
        p = self.request([0, *args], init_image, **parameters)
        p.is_api = not from_page
        if settings is None:
            p.scripts = None
        return jobs.execute(p)

    def request(self, script_args: list[Any], init_image: Image.Image | None = None, **parameters: Any) -> Any:
        """Creates the webui's processing object of a job. `parameters` are attributes that replace the defaults below.

        `script_args[0]` is the position of the selected script in the dropdown "Script", or 0 if no script is selected.
        """
        paths_internal.data_path = str(self.folder)
        if getattr(shared.sd_model, "small", None) is not self.small:
            sd_models.use_model(self.small, "random")
        is_img2img = init_image is not None
        values = {
            "prompt": "one",
            "negative_prompt": "two",
            "seed": 7,
            "steps": 4,
            "sampler_name": "Euler",
            "cfg_scale": 3.0,
            "width": BASE,
            "height": BASE,
            "do_not_save_samples": True,
            **parameters,
            **({"init_image": init_image} if is_img2img else {}),
        }
        runner = scripts.scripts_img2img if is_img2img else scripts.scripts_txt2img
        return jobs.make(runner, is_img2img, values, script_args)


def sizes(processed: processing.Processed) -> list[int]:
    """Returns the width of each image in pixels."""
    return [image.width for image in processed.images]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """Makes every call of the function `name` of `owner` first interrupt the job, like the button "Interrupt"."""
    real = getattr(owner, name)

    def interrupting(*args: Any) -> Any:
        shared.state.interrupt()
        return real(*args)

    monkeypatch.setattr(owner, name, interrupting)
