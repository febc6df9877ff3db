"""Shows messages of a job below the images, and writes these messages to the infotext.

javascript/demofusion.js repeats the messages above the gallery. A message about an exception is also printed to the
console.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PREFIX = "DemoFusion"
KEY_ERROR = "DemoFusion error"
KEY_STOPPED = "DemoFusion stopped"
KEY_SIZE = "DemoFusion size"
KEY_NOTE = "DemoFusion note"


STOPPED = "DemoFusion stopped: showing"
"""The first words of the message about a stopped run. The name and the size of the shown image follow.

javascript/demofusion.js moves the size to a separate element of the page, so that the webui can translate the rest of
the message.
"""

BASE_IMAGE = "the base image"

KEYS = (KEY_ERROR, KEY_STOPPED, KEY_SIZE, KEY_NOTE)


def sized(image: str, width: int, height: int) -> str:
    """Returns a name for an image that includes its size in pixels."""
    return f"{image} ({width}x{height})"


def reported(p: Any) -> dict[str, str]:
    """Returns the infotext entries of all messages so far."""
    return {key: p.extra_generation_params[key] for key in KEYS if key in p.extra_generation_params}


def reset(p: Any, entries: Mapping[str, str]) -> None:
    """Replaces the infotext entries of all messages by `entries`, the result of an earlier call of `reported`.

    A job calls this function at the start of each iteration. The webui's "Batch count" is the number of iterations.
    Messages about the whole job are kept, and messages about the images of the previous iteration are removed.
    """
    for key in KEYS:
        p.extra_generation_params.pop(key, None)
    p.extra_generation_params.update(entries)


def report_note(p: Any, note: str) -> None:
    """Reports a fact that is not an error, such as a difference between the result and the request."""
    _report(p, KEY_NOTE, note)


def report_problem(p: Any, problem: str) -> None:
    """Reports an error.

    If a hook of a script raises an exception, the webui prints it only to the console. The page would show no error
    without this function.
    """
    _report(p, KEY_ERROR, problem)


def _report(p: Any, key: str, text: str) -> None:
    """Shows a text below the images, and adds it to the infotext entry `key`.

    The infotext entry contains each text only once.
    """
    p.comment(_with_prefix(text))
    before = p.extra_generation_params.get(key)
    if before is None:
        p.extra_generation_params[key] = text
    elif f"; {text}; " not in f"; {before}; ":
        p.extra_generation_params[key] = f"{before}; {text}"


def report_stop(p: Any, where: str, shown: str) -> None:
    """Reports that the user stopped the run.

    `where` is the point at which the run stopped, such as "in stage 2 of 2 (2048x2048)". `shown` is the name of the
    image that is shown in place of the final image.
    """
    p.extra_generation_params[KEY_STOPPED] = f"{where}, this is {shown}"
    p.comment(f"{STOPPED} {shown}")


def report_failure(p: Any, problem: str, error: Exception) -> None:
    """Reports `problem` and the first line of the exception as an error, and prints the traceback to the console."""
    # this import is not at the top, because some tests import this file without a webui
    from modules import errors

    problem = f"{problem}: {_first_line(error)}"
    errors.report(_with_prefix(problem), exc_info=True)
    report_problem(p, problem)


def _with_prefix(text: str) -> str:
    """Returns a text that begins with "DemoFusion". Adds the prefix if the text begins with another word."""
    return text if text.startswith(PREFIX) else f"{PREFIX}: {text}"


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
