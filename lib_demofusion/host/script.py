"""The script that the webui loads.

From `process` to `postprocess`, an attribute of `p` (the webui's object for a request) contains the job.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

from modules import script_callbacks, scripts

from lib_demofusion.host.backends import greet, host, loaded_model
from lib_demofusion.host.common import options, user_presets
from lib_demofusion.host.common.messages import PREFIX, report_note, report_problem
from lib_demofusion.host.images.output import shrink_for_gallery
from lib_demofusion.host.integrations import refusals
from lib_demofusion.host.job import Job
from lib_demofusion.host.panel import build, page, xyz
from lib_demofusion.host.progress import webui_state
from lib_demofusion.settings.errors import SettingsError
from lib_demofusion.settings.fields import Settings
from lib_demofusion.settings.presets import Choices
from lib_demofusion.settings.reading import (
    fields_without_switch,
    is_enabled,
    names_preset,
    overridden,
    settings_from_args,
    to_infotext,
)

logger = logging.getLogger("DemoFusion")

JOB = "_demofusion_job"
ASKED_SIZE = "_demofusion_asked_size"
"""Names of attributes of `p`: the Job, and the requested width and height in pixels."""

ENABLED = "_demofusion_on"
"""Name of an attribute of `p`: True if the request enables DemoFusion.

The attribute remains after the job has ended, because other scripts can still run requests inside this request.
"""

TURBO_USED = (
    "the preset {} is used instead of {}, because the request contains no preset, and its steps and CFG scale are "
    "typical of a few-step model"
)

PROCESSING = "modules.processing"
"""The module whose functions run a request. In these functions, the local variable `p` is the request."""


def supported() -> bool:
    """Returns whether the webui has the hook in which the stages run (1.8 and newer). If not, install.py reports it."""
    return hasattr(scripts.Script, "post_sample")


class DemoFusionHires(scripts.Script):
    """Adds a panel to txt2img and img2img, and runs the stages of DemoFusion after the base image."""

    def __init__(self) -> None:
        self.panel: build.Panel | None = None
        self.tab_components = page.TabComponents()

    def title(self) -> str:
        return "DemoFusion Hires"

    def show(self, is_img2img: bool) -> object:
        if not supported():
            return False
        # the axes are added here, because the webui calls `show` before any script creates its controls. With
        # --nowebui, the callback `on_before_ui` would run after the X/Y/Z plot has read the list of axes
        xyz.register()
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        return build.build(self)

    def after_component(self, component: Any, **kwargs: Any) -> None:
        page.component_of_tab(self, component, kwargs.get("elem_id"))

    def before_process(self, p: Any, *args: Any) -> None:
        # Forge Neo rounds the requested size between this hook and `process`, usually to multiples of 64
        setattr(p, ASKED_SIZE, (p.width, p.height))

    def process(self, p: Any, *args: Any) -> None:
        create_job(p, args)

    def process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        # p.init has run, and the base image is not sampled yet
        job = getattr(p, JOB, None)
        if job is not None:
            job.before_base(p)

    def post_sample(self, p: Any, ps: Any, *args: Any) -> None:
        # the base image is sampled, but not decoded yet
        job = getattr(p, JOB, None)
        if job is not None:
            ps.samples = job.after_base(p, ps.samples)

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        end_job(p, processed)


def create_job(p: Any, args: Sequence[object]) -> None:
    """Creates the job of a request, if the request enables DemoFusion.

    Removes DemoFusion's infotext keys first. The X/Y/Z plot uses one dict of infotext keys for all its cells, so the
    dict may contain keys of earlier cells.

    Ignores a request that runs inside another request with DemoFusion. For example, ADetailer repaints a part of the
    image with a request of its own, and calls the hooks of every script with copies of the outer request.
    """
    outer = next((outer for outer in outer_requests(p) if getattr(outer, ENABLED, False)), None)
    setattr(p, ENABLED, False)
    if outer is not None and outer.extra_generation_params is p.extra_generation_params:
        # both requests use the same dict. Its keys must remain until the outer request creates its infotexts
        setattr(p, JOB, None)
        return
    for key in [key for key in p.extra_generation_params if key.startswith(PREFIX)]:
        del p.extra_generation_params[key]
    setattr(p, JOB, None)
    if outer is not None or getattr(p, "_ad_inner", False):
        return
    overrides = xyz.overrides(p)
    _note_ignored_fields(p, args, overrides)
    try:
        if not is_enabled(args, overrides):
            webui_state.withdraw()
            return
        known = user_presets.known_choices()
        settings = _settings(p, args, overrides, known)
    except SettingsError as error:
        webui_state.withdraw()
        report_problem(p, str(error))
        return
    _note_rounding(p)
    setattr(p, ENABLED, True)
    setattr(p, JOB, Job(p, settings, to_infotext(settings, known)))


def _note_rounding(p: Any) -> None:
    asked = getattr(p, ASKED_SIZE, (p.width, p.height))
    if asked != (p.width, p.height):
        report_note(p, f"this webui creates a base image of {p.width}x{p.height} instead of {asked[0]}x{asked[1]}")


def _note_ignored_fields(p: Any, args: Sequence[object], overrides: Mapping[str, object]) -> None:
    """Adds a note if a request contains fields of DemoFusion but not `enabled`. The fields then have no effect."""
    fields = () if "enabled" in overrides else fields_without_switch(args)
    if fields:
        report_note(p, f'DemoFusion is off, because the request contains {", ".join(fields)} but not "enabled": true')


def _settings(p: Any, args: Sequence[object], overrides: Mapping[str, object], known: Choices) -> Settings:
    """Returns the settings of a request. Raises SettingsError.

    The preset Turbo is selected automatically only if the request contains no preset. The panel always sends a preset.
    If a script such as the X/Y/Z plot is selected, Turbo is not selected automatically either. The preset is then the
    same for all images of the plot, even if the plot changes the number of steps.
    """
    asked = overridden(settings_from_args(args, _default_preset(p, args, known), known), overrides, known)
    if names_preset(args) or "preset" in overrides or refusals.of_job(p).script:
        return asked
    settings = options.with_automatic_preset(
        asked, p.steps, p.cfg_scale, known, host().family(loaded_model()).distilled
    )
    if settings.preset != asked.preset:
        report_note(p, TURBO_USED.format(settings.preset, asked.preset))
    return settings


def _default_preset(p: Any, args: Sequence[object], known: Choices) -> str:
    """Returns the default preset of the settings page, which applies if a request contains no preset.

    If this preset no longer exists, returns the built-in default, and adds a note if the request contains no preset.
    """
    gone = options.default_preset_gone(known)
    if gone is not None and not names_preset(args):
        logger.warning("%s %s", options.DEFAULT_GONE, gone)
        report_note(p, f"{options.DEFAULT_GONE} {gone}")
    return options.default_preset(known)


def outer_requests(p: Any) -> Iterator[Any]:
    """Yields the requests other than p that the webui is processing, the innermost first.

    Finds the requests in the call stack. An attribute of the request could not show that the request is running: after
    an error the attribute would remain, and copies of the request would have the attribute too.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        found = frame.f_locals.get("p") if frame.f_globals.get("__name__") == PROCESSING else None
        if found is not None and found is not p:
            yield found
        frame = frame.f_back


def end_job(p: Any, processed: Any) -> None:
    """Ends the job of a request after all its images are finished, and adds the images of the stages to `processed`."""
    job = getattr(p, JOB, None)
    if job is None or job.request() is not p:
        # ADetailer calls this hook with a copy of the request between the images of a batch
        return
    setattr(p, JOB, None)
    job.end(p)
    # the page finds the infotext of an image by the image's index. The webui adds masks to `images` without infotexts,
    # so they get one here, before the images of the stages follow
    processed.infotexts.extend([processed.info] * (len(processed.images) - len(processed.infotexts)))
    processed.images.extend(picture.image for picture in job.stage_images)
    processed.infotexts.extend(picture.infotext for picture in job.stage_images)
    if not p.is_api:
        shrink_for_gallery(processed)


def register() -> None:
    """Registers DemoFusion's callbacks in the webui. The webui removes all callbacks at each "Reload UI"."""
    script_callbacks.on_after_component(page.component_of_page)
    script_callbacks.on_ui_settings(options.register)
    greet()
