"""The webui's hooks, a few lines each. The job of a request hangs on its `p` from `process` to `postprocess`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lib_demofusion.host import presets, xyz
from lib_demofusion.host.job import PREFIX, Job, report_problem
from lib_demofusion.host.output import shrink_for_gallery
from lib_demofusion.settings import overridden, settings_from_args
from lib_demofusion.spec import SettingsError

JOB = "_demofusion_job"


def process(p: Any, args: Sequence[object]) -> None:
    """Reads the request. Keys of an earlier run are removed: grids share one dict of them among their cells."""
    for key in [key for key in p.extra_generation_params if key.startswith(PREFIX)]:
        del p.extra_generation_params[key]
    setattr(p, JOB, None)
    if getattr(p, "_ad_inner", False):
        # ADetailer repaints a detail of a picture that is already made
        return
    try:
        settings = overridden(settings_from_args(args, presets.default()), xyz.overrides(p))
    except SettingsError as error:
        report_problem(p, str(error))
        return
    if settings.enabled:
        setattr(p, JOB, Job(p, settings))


def process_batch(p: Any) -> None:
    """Runs after p.init and before the base picture is sampled."""
    job = getattr(p, JOB, None)
    if job is not None:
        job.before_base(p)


def post_sample(p: Any, ps: Any) -> None:
    """Runs after the base picture is sampled and before it is decoded."""
    job = getattr(p, JOB, None)
    if job is not None:
        ps.samples = job.after_base(p, ps.samples)


def postprocess(p: Any, processed: Any) -> None:
    """Runs when all pictures are made; adds those of the stages behind them."""
    job = getattr(p, JOB, None)
    if job is None:
        return
    setattr(p, JOB, None)
    job.end(p)
    if not p.is_api:
        shrink_for_gallery(processed)
    processed.images.extend(picture.image for picture in job.pictures)
    processed.infotexts.extend(picture.infotext for picture in job.pictures)
