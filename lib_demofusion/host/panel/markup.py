"""Formats constant texts, times and problems as HTML for the panel.

The webui translates a text node of the page only if the localization file contains exactly this text. Every constant
text is therefore in a separate text node.
"""

from __future__ import annotations

import html

from lib_demofusion.settings.errors import SettingsError, shortened
from lib_demofusion.settings.fields import SPECS

NOT_VALID = "is not valid. Use"
ABOUT = "about"
SECONDS, MINUTES, HOURS = "seconds", "minutes", "hours"


def word(text: str) -> str:
    """Wraps a constant text in a `span`, so that the webui can translate it."""
    return f"<span>{html.escape(text)}</span>"


def problem_html(*parts: str) -> str:
    """Joins pieces of HTML in a `span` with the CSS class for problems."""
    return f'<span class="demofusion-error">{" ".join(parts)}</span>'


def error_html(error: SettingsError) -> str:
    """Formats an error as HTML: the label of the field in the panel, the value, and the allowed values."""
    label = SPECS[error.name].label if error.name in SPECS else error.name
    value, allowed = html.escape(shortened(error.value)), html.escape(error.allowed)
    return problem_html(f"{word(label)}:", value, word(NOT_VALID), allowed)


def duration(seconds: float) -> str:
    """Formats a rounded time as HTML. The unit is the largest one in which the time is at least 2, or else seconds."""
    if seconds >= 2 * 3600:
        number, unit = round(seconds / 1800) / 2, HOURS
    elif seconds >= 2 * 60:
        number, unit = round(seconds / 60), MINUTES
    else:
        number, unit = max(1, round(seconds)) if seconds < 10 else 5 * round(seconds / 5), SECONDS
    return f"{word(ABOUT)} {number:g} {word(unit)}"
