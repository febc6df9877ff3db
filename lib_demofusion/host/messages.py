"""What a job tells: under the image, in its text, where API users find it too, and on the console."""

from __future__ import annotations

from typing import Any

PREFIX = "DemoFusion"
KEY_ERROR = "DemoFusion error"
KEY_STOPPED = "DemoFusion stopped"
KEY_SIZE = "DemoFusion size"
KEY_NOTE = "DemoFusion note"


def clear(p: Any) -> None:
    """Removes what was told of the iteration before."""
    for key in (KEY_ERROR, KEY_STOPPED, KEY_SIZE, KEY_NOTE):
        p.extra_generation_params.pop(key, None)


def report_note(p: Any, note: str) -> None:
    """Says what is otherwise than was asked for, though nothing went wrong."""
    p.comment(_said(note))
    before = p.extra_generation_params.get(KEY_NOTE)
    if note not in (before or "").split("; "):
        p.extra_generation_params[KEY_NOTE] = f"{before}; {note}" if before else note


def report_problem(p: Any, problem: str) -> None:
    """Says what went wrong: the host shows no error of a script's hook."""
    p.comment(_said(problem))
    p.extra_generation_params[KEY_ERROR] = problem


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
