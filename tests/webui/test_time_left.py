"""The time left that the webui tells while stages run, against the time that was left indeed.

Needs a machine that does nothing else and a checkpoint whose jobs take several seconds, such as one of the real layout
(--checkpoints DIR). The figures of every job are printed with `-s`.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any, NamedTuple

import pytest
from webui.conftest import Webui

pytestmark = [pytest.mark.webui, pytest.mark.slow]

SIDE = 64
WITHIN = 0.25
SECOND = 1.0
"""The page shows whole seconds."""
OWN_STEPS = 0.25
"""DPM adaptive chooses its steps while it runs; what it has left is told within this share of the whole."""

JOBS: dict[str, dict[str, Any]] = {
    "first of a checkpoint": {"sampler_name": "Euler"},
    "Euler": {"sampler_name": "Euler"},
    "DPM++ 2M Karras, 4x": {"sampler_name": "DPM++ 2M", "scheduler": "Karras", "scale": 4},
    "Heun": {"sampler_name": "Heun"},
    "DPM++ SDE": {"sampler_name": "DPM++ SDE"},
    "DPM adaptive": {"sampler_name": "DPM adaptive"},
    "two batches of two": {"sampler_name": "Euler a", "n_iter": 2, "batch_size": 2},
    "hires fix before": {
        "sampler_name": "Euler a",
        "enable_hr": True,
        "hr_scale": 1.5,
        "hr_upscaler": "Latent",
        "denoising_strength": 0.7,
    },
    "queue of three": {"sampler_name": "UniPC", "n_iter": 3},
}


class Reading(NamedTuple):
    """What the webui said at a time."""

    time: float
    left: float
    progress: float
    stage: str
    """The text beside the bar."""


def readings(webui: Webui, **request: Any) -> tuple[list[Reading], float, float]:
    """Runs a job; returns what was read ten times a second while it ran, and when it began and ended."""
    seen: list[Reading] = []
    done = threading.Event()

    def poll() -> None:
        while not done.wait(0.1):
            now, answer = time.perf_counter(), webui.call("progress?skip_current_image=true")
            seen.append(Reading(now, answer["eta_relative"], answer["progress"], answer["textinfo"] or ""))

    poller = threading.Thread(target=poll)
    begin = time.perf_counter()
    poller.start()
    try:
        scale = request.pop("scale", 2)
        webui.generate({"enabled": True, "scale": scale}, width=SIDE, height=SIDE, steps=12, **request)
    finally:
        end = time.perf_counter()
        done.set()
        poller.join()
    return seen, begin, end


def behind_the_first_fifth(seen: list[Reading]) -> list[Reading]:
    """Those read while a stage ran, without its first fifth and what follows the last move of the bar.

    An image that is decoded in one piece reports nothing until it is done: the bar stands where it began.
    """
    chosen: list[Reading] = []
    moved = max((n for n in range(1, len(seen)) if seen[n].progress > seen[n - 1].progress), default=0)
    seen, first = seen[: moved + 1], 0
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
def test_time_left(webui: Webui, job: str) -> None:
    seen, begin, end = readings(webui, **JOBS[job])
    told = behind_the_first_fifth(seen)
    assert len(told) > 5, "too short a job to tell"
    left = [end - reading.time for reading in told]
    errors = [abs(reading.left - true) for reading, true in zip(told, left)]
    worst = max(range(len(told)), key=lambda i: errors[i] / left[i])
    sys.stdout.write(
        f"\n{job}: {end - begin:.1f} s; worst {errors[worst] / left[worst]:.2f} of what was left "
        f"({errors[worst]:.1f} s of {left[worst]:.1f} s), {max(errors) / (end - begin):.2f} of the whole\n"
    )
    if job == "DPM adaptive":
        assert max(errors) <= OWN_STEPS * (end - begin)
    else:
        assert all(error <= max(WITHIN * true, SECOND) for error, true in zip(errors, left))
