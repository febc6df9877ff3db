"""Parses the text fields: the list of stages, and the weights below which views are skipped."""

from __future__ import annotations

from itertools import pairwise

from lib_demofusion.settings.spec import SettingsError

MAX_SCALE = 8
MOST_WEIGHT = 0.5

EVERY, DOUBLING, FEWEST = STAGE_WORDS = ("every", "doubling", "fewest")
"""Stage lists that depend on the scale. EVERY has a stage at each integer below it, DOUBLING at 2, 4 and so on. FEWEST
has as few stages as possible, each of which enlarges up to 4x.
"""

STAGES_ALLOWED = f"rising scales between 1 and {MAX_SCALE} such as 1,2,4, or one word of {', '.join(STAGE_WORDS)}"
SKIP_ALLOWED = f"two numbers from 0 to {MOST_WEIGHT:g} such as 0.5,0.1, or nothing for no view"


def parse_stages(text: str) -> list[float]:
    """Parses a stage list into scales, without a leading 1, which means the base image.

    Returns an empty list for STAGE_WORDS and for an empty text, which means "every". Raises SettingsError.
    """
    if not text or text in STAGE_WORDS:
        return []
    try:
        scales = [float(entry) for entry in text.replace(";", ",").split(",")]
    except ValueError:
        raise SettingsError("stages", text, STAGES_ALLOWED) from None
    rising = all(a < b for a, b in pairwise(scales))
    if not rising or not all(1 <= scale <= MAX_SCALE for scale in scales):
        raise SettingsError("stages", text, STAGES_ALLOWED)
    return scales[1:] if scales[0] == 1 else scales


def parse_skip(text: str) -> tuple[float, float]:
    """Parses the weights below which tiles and dilated views are skipped, 0 for no text. Raises SettingsError."""
    if not text:
        return 0.0, 0.0
    try:
        local, dilated = (float(entry) for entry in text.replace(";", ",").split(","))
    except ValueError:
        raise SettingsError("skip_views", text, SKIP_ALLOWED) from None
    if not (0 <= local <= MOST_WEIGHT and 0 <= dilated <= MOST_WEIGHT):
        raise SettingsError("skip_views", text, SKIP_ALLOWED)
    return local, dilated
