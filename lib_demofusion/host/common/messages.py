"""What a job tells: under the image, in its text, where API users find it too, and on the console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PREFIX = "DemoFusion"
KEY_ERROR = "DemoFusion error"
KEY_STOPPED = "DemoFusion stopped"
KEY_SIZE = "DemoFusion size"
KEY_NOTE = "DemoFusion note"


STOPPED = "DemoFusion stopped: showing"
"""How the sentence about a stopped run begins; the page splits it there and at the size (javascript/demofusion.js)."""

BASE_IMAGE = "the base image"

KEYS = (KEY_ERROR, KEY_STOPPED, KEY_SIZE, KEY_NOTE)


def reported(p: Any) -> dict[str, str]:
    """Returns the infotext entries of what was reported so far."""
    return {key: p.extra_generation_params[key] for key in KEYS if key in p.extra_generation_params}


def reset(p: Any, entries: Mapping[str, str]) -> None:
    """Replaces what was reported by the infotext entries of an earlier moment.

    An iteration begins with this: what was reported for the whole job stays, what belongs to the images of the
    iteration before goes.
    """
    for key in KEYS:
        p.extra_generation_params.pop(key, None)
    p.extra_generation_params.update(entries)


def report_note(p: Any, note: str) -> None:
    """Reports a difference from the request that is no fault."""
    _report(p, KEY_NOTE, note)


def report_problem(p: Any, problem: str) -> None:
    """Reports a fault: the host shows no error of a script's hook."""
    _report(p, KEY_ERROR, problem)


def _report(p: Any, key: str, text: str) -> None:
    """Adds a text to those of its kind, unless it is among them."""
    p.comment(_said(text))
    before = p.extra_generation_params.get(key)
    if before is None:
        p.extra_generation_params[key] = text
    elif f"; {text}; " not in f"; {before}; ":
        p.extra_generation_params[key] = f"{before}; {text}"


def report_stop(p: Any, where: str, shown: str) -> None:
    """Reports that the user stopped the run: where it was, and which image is shown instead of the final one."""
    p.extra_generation_params[KEY_STOPPED] = f"{where}, this is {shown}"
    p.comment(f"{STOPPED} {shown}")


def report_failure(p: Any, problem: str, error: Exception) -> None:
    """Does the same for an exception, whose trace goes to the console."""
    # imported here: tests of ControlNet's notes run this file without a webui
    from modules import errors

    problem = f"{problem}: {_first_line(error)}"
    errors.report(_said(problem), exc_info=True)
    report_problem(p, problem)


def _said(text: str) -> str:
    """Returns a text as it stands under an image, where it must say who speaks."""
    return text if text.startswith(PREFIX) else f"{PREFIX}: {text}"


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
