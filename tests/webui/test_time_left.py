"""Compares the remaining time that the webui shows during stages with the real remaining time.

The tests need an idle machine, and a checkpoint whose jobs take several seconds, such as a checkpoint with the layout
of a real model (--checkpoints DIR). With `-s`, pytest prints the results of every job.

The tests read the progress from the route that the page uses. The API has another route `progress`, which adds 0.01 to
the progress. At a progress of 0.03, this would be an error of a third.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from webui.conftest import Webui

pytestmark = [pytest.mark.webui, pytest.mark.slow]

SIDE = 64
WITHIN = 0.25
"""Allowed error as a share of the real remaining time."""
SECOND = 1.0
"""Allowed error in seconds, because the page shows whole seconds only."""
DECODING = 0.3
"""If the bar does not move for more than this number of seconds, the tests assume that the webui decodes an image.

The tests therefore need a machine on which a model call takes less than this time, and decoding takes more.
"""
OF_THE_WHOLE = {"DPM adaptive": 0.25, "first job on a machine": 0.1}
"""Maximum error as a share of the job's whole duration, for jobs that are hard to predict.

DPM adaptive chooses its steps while it runs. The decoding time is a guess until this machine has decoded an image.
"""
RUN_TWICE = ("DPM adaptive",)
"""Jobs that run once before the test, because DemoFusion learns their number of model calls from earlier stages."""

JOBS: dict[str, dict[str, Any]] = {
    "first job on a machine": {"sampler_name": "Euler"},
    "Euler": {"sampler_name": "Euler"},
    "DPM++ 2M Karras, 4x": {"sampler_name": "DPM++ 2M", "scheduler": "Karras", "scale": 4},
    "Heun": {"sampler_name": "Heun"},
    "DPM++ SDE": {"sampler_name": "DPM++ SDE"},
    "DPM adaptive": {"sampler_name": "DPM adaptive"},
    "two batches of two": {"sampler_name": "Euler a", "n_iter": 2, "batch_size": 2},
    "hires fix before the stages": {
        "sampler_name": "Euler a",
        "enable_hr": True,
        "hr_scale": 1.5,
        "hr_upscaler": "Latent",
        "denoising_strength": 0.7,
    },
    "three batches": {"sampler_name": "UniPC", "n_iter": 3},
}


class Reading(NamedTuple):
    """One answer of the webui about its progress."""

    time: float
    """The time of the reading on the clock of the test, in seconds."""
    left: float
    """The remaining time that the webui reports, in seconds."""
    progress: float
    """The progress of the job, from 0 to 1."""
    stage: str
    """The text next to the bar."""


def readings(webui: Webui, **request: Any) -> tuple[list[Reading], float, float]:
    """Runs a job and reads its progress ten times a second. Returns the readings, and the job's start and end times."""
    seen: list[Reading] = []
    done, task = threading.Event(), f"task({uuid4().hex})"

    def poll() -> None:
        query = {"id_task": task, "id_live_preview": -1, "live_preview": False}
        while not done.wait(0.1):
            now, answer = time.perf_counter(), webui.call("progress", query, under="internal")
            if answer["active"] and answer["progress"]:
                seen.append(Reading(now, answer["eta"], answer["progress"], answer["textinfo"] or ""))

    poller = threading.Thread(target=poll)
    begin = time.perf_counter()
    poller.start()
    try:
        scale = request.pop("scale", 2)
        size = {"width": SIDE, "height": SIDE, "steps": 12}
        webui.generate({"enabled": True, "scale": scale}, **size, **request, force_task_id=task)
    finally:
        end = time.perf_counter()
        done.set()
        poller.join()
    return seen, begin, end


def before_the_last_image(seen: Sequence[Reading]) -> Sequence[Reading]:
    """Returns the readings before the last image is decoded.

    While an image is decoded, the bar does not move. During this time, the bar shows the progress for the middle of the
    decoding. The remaining time can therefore be wrong by half of the decoding time.
    """
    moves = [n for n in range(1, len(seen)) if seen[n].progress > seen[n - 1].progress]
    stops = [begin for begin, end in pairwise([*moves, len(seen) - 1]) if seen[end].time - seen[begin].time > DECODING]
    return seen[: stops[-1]] if stops else seen


def after_the_first_fifth(seen: Sequence[Reading]) -> list[Reading]:
    """Returns the readings in stages, without those in the first fifth of each stage."""
    chosen: list[Reading] = []
    first = 0
    for index in range(1, len(seen) + 1):
        if index < len(seen) and seen[index].stage == seen[first].stage:
            continue
        part = seen[first:index]
        if part[0].stage.startswith("DemoFusion"):
            from_then = part[0].time + 0.2 * (part[-1].time - part[0].time)
            chosen += [reading for reading in part if reading.time >= from_then]
        first = index
    return chosen


@pytest.mark.parametrize("job", JOBS)
def test_the_remaining_time_during_stages_is_close_to_the_real_remaining_time(webui: Webui, job: str) -> None:
    if job in RUN_TWICE:
        readings(webui, **JOBS[job])
    seen, begin, end = readings(webui, **JOBS[job])
    chosen = after_the_first_fifth(before_the_last_image(seen))
    assert len(chosen) > 5, f"the job was too short: it gave {len(chosen)} readings, and the test needs at least 6"
    left = [end - reading.time for reading in chosen]
    errors = [abs(reading.left - true) for reading, true in zip(chosen, left)]
    worst = max(range(len(chosen)), key=lambda i: errors[i] / left[i])
    sys.stdout.write(
        f"\n{job}: {end - begin:.1f} s; largest error {errors[worst] / left[worst]:.0%} of the time left "
        f"({errors[worst]:.1f} s of {left[worst]:.1f} s), {max(errors) / (end - begin):.0%} of the whole job\n"
    )
    if job in OF_THE_WHOLE:
        assert max(errors) <= OF_THE_WHOLE[job] * (end - begin)
    else:
        assert all(error <= max(WITHIN * true, SECOND) for error, true in zip(errors, left))
