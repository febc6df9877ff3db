"""What the panel shows as HTML: constant texts, times, and what is wrong.

The webui translates a text node where it knows the whole of it: every constant piece is therefore a node of its own.
"""

from __future__ import annotations

import html

from lib_demofusion.settings.fields import SPECS
from lib_demofusion.settings.spec import SettingsError

NOT_POSSIBLE = "is not possible; allowed:"
ABOUT = "about"
SECONDS, MINUTES, HOURS = "seconds", "minutes", "hours"


def word(text: str) -> str:
    """Returns a constant text as a node of its own."""
    return f"<span>{html.escape(text)}</span>"


def problem_html(*parts: str) -> str:
    """Returns pieces of HTML as something that is wrong."""
    return f'<span class="demofusion-error">{" ".join(parts)}</span>'


def error_html(error: SettingsError) -> str:
    """Returns the message of an error, behind the label of its field where that has another name in the panel."""
    before, _, allowed = str(error).partition(NOT_POSSIBLE)
    label = SPECS[error.name].label if error.name in SPECS else ""
    same = label.lower() == error.name.replace("_", " ")
    field = [f"{word(label)}:"] if label and not same else []
    return problem_html(*field, html.escape(before.strip()), word(NOT_POSSIBLE), html.escape(allowed.strip()))


def duration(seconds: float) -> str:
    """Returns a rough time as HTML, in the largest unit of which there are at least two."""
    if seconds >= 2 * 3600:
        number, unit = round(seconds / 1800) / 2, HOURS
    elif seconds >= 2 * 60:
        number, unit = round(seconds / 60), MINUTES
    else:
        number, unit = max(1, round(seconds)) if seconds < 10 else 5 * round(seconds / 5), SECONDS
    return f"{word(ABOUT)} {number:g} {word(unit)}"
