"""Reports messages of a job below the image and in its infotext. Errors also go to the console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PREFIX = "DemoFusion"
KEY_ERROR = "DemoFusion error"
KEY_STOPPED = "DemoFusion stopped"
KEY_SIZE = "DemoFusion size"
KEY_NOTE = "DemoFusion note"


STOPPED = "DemoFusion stopped: showing"
"""The beginning of the message about a stopped run. The name and the size of the shown image follow.

The page puts the size into an element of its own, so that the webui can translate the rest (javascript/demofusion.js).
"""

BASE_IMAGE = "the base image"

KEYS = (KEY_ERROR, KEY_STOPPED, KEY_SIZE, KEY_NOTE)


def sized(image: str, width: int, height: int) -> str:
    """Returns the name of an image with its size in pixels."""
    return f"{image} ({width}x{height})"


def reported(p: Any) -> dict[str, str]:
    """Returns the infotext entries of all reports so far."""
    return {key: p.extra_generation_params[key] for key in KEYS if key in p.extra_generation_params}


def reset(p: Any, entries: Mapping[str, str]) -> None:
    """Resets the reports to earlier infotext entries.

    A job calls this at the start of each iteration. Reports about the whole job are kept, and reports about the images
    of the previous iteration are removed.
    """
    for key in KEYS:
        p.extra_generation_params.pop(key, None)
    p.extra_generation_params.update(entries)


def report_note(p: Any, note: str) -> None:
    """Reports a difference from the request that is not an error."""
    _report(p, KEY_NOTE, note)


def report_problem(p: Any, problem: str) -> None:
    """Reports an error. The webui does not show errors of a script's hook."""
    _report(p, KEY_ERROR, problem)


def _report(p: Any, key: str, text: str) -> None:
    """Adds a text to the reports of its kind, without duplicates."""
    p.comment(_said(text))
    before = p.extra_generation_params.get(key)
    if before is None:
        p.extra_generation_params[key] = text
    elif f"; {text}; " not in f"; {before}; ":
        p.extra_generation_params[key] = f"{before}; {text}"


def report_stop(p: Any, where: str, shown: str) -> None:
    """Reports that the user stopped the run, and which image is shown instead of the final one."""
    p.extra_generation_params[KEY_STOPPED] = f"{where}, this is {shown}"
    p.comment(f"{STOPPED} {shown}")


def report_failure(p: Any, problem: str, error: Exception) -> None:
    """Reports an exception as an error, and prints its traceback to the console."""
    # imported here, because some tests import this file without a webui
    from modules import errors

    problem = f"{problem}: {_first_line(error)}"
    errors.report(_said(problem), exc_info=True)
    report_problem(p, problem)


def _said(text: str) -> str:
    """Returns a text with the extension's name in front, as it is shown below an image."""
    return text if text.startswith(PREFIX) else f"{PREFIX}: {text}"


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
