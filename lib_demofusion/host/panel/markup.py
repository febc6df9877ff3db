"""What the panel shows as HTML: constant texts, times, and what is wrong.

The webui translates a text node where it knows the whole of it: every constant piece is therefore a node of its own.
"""

from __future__ import annotations

import html

from lib_demofusion.settings.fields import SPECS
from lib_demofusion.settings.spec import SettingsError, shortened

NOT_VALID = "is not valid. Use"
ABOUT = "about"
SECONDS, MINUTES, HOURS = "seconds", "minutes", "hours"


def word(text: str) -> str:
    """Returns a constant text as a node of its own."""
    return f"<span>{html.escape(text)}</span>"


def problem_html(*parts: str) -> str:
    """Returns pieces of HTML as something that is wrong."""
    return f'<span class="demofusion-error">{" ".join(parts)}</span>'


def error_html(error: SettingsError) -> str:
    """Returns the message of an error: the field's label in the panel, the value, and the values that are allowed."""
    label = SPECS[error.name].label if error.name in SPECS else error.name
    value, allowed = html.escape(shortened(error.value)), html.escape(error.allowed)
    return problem_html(f"{word(label)}:", value, word(NOT_VALID), allowed)


def duration(seconds: float) -> str:
    """Returns a rough time as HTML, in the largest unit of which there are at least two."""
    if seconds >= 2 * 3600:
        number, unit = round(seconds / 1800) / 2, HOURS
    elif seconds >= 2 * 60:
        number, unit = round(seconds / 60), MINUTES
    else:
        number, unit = max(1, round(seconds)) if seconds < 10 else 5 * round(seconds / 5), SECONDS
    return f"{word(ABOUT)} {number:g} {word(unit)}"
