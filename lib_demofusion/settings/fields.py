"""Declares the fields of a run with their names, ranges, labels and infotext keys.

The panel, the API, the infotext and the X/Y/Z plot read these declarations.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

from lib_demofusion.settings.errors import SettingsError
from lib_demofusion.settings.presets import EVERY, IN_PIXELS, LATENT_UPSCALER, STAGE_WORDS, Choices
from lib_demofusion.settings.spec import Spec

LATENT, PIXELS, MIXED = ("latent", "pixels", "mixed")
"""The ways to compute the anchor, the enlarged latent of the previous image from which a stage begins.

LATENT enlarges the latent with bicubic interpolation. PIXELS decodes the latent, enlarges the image with an upscaler,
and encodes the result. MIXED combines the coarse part of LATENT's result with the fine part of PIXELS' result.
"""

MAX_SCALE = 8
"""Maximum width and height of the final image as a multiple of the base image."""
MOST_WEIGHT = 0.5
"""Maximum of both numbers in the field `skip_views`."""

STAGES_ALLOWED = f"increasing scales from 1 to {MAX_SCALE}, such as 1,2,4, or one of {', '.join(STAGE_WORDS)}"
SKIP_ALLOWED = f"two numbers from 0 to {MOST_WEIGHT:g}, such as 0.5,0.1, or an empty text to skip no view"


def parse_stages(text: str) -> list[float]:
    """Parses the field `stages`, such as "1,2,4", into scales. Removes a leading 1, the scale of the base image.

    Returns an empty list for one of STAGE_WORDS and for an empty text. Raises SettingsError if the text is not valid.
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
    """Parses the field `skip_views`, such as "0.5,0.1", into the thresholds for tiles and for dilated views.

    See `Settings.local_threshold` and `Settings.dilated_threshold`. An empty text means 0 for both. Raises
    SettingsError if the text is not valid.
    """
    if not text:
        return 0.0, 0.0
    try:
        local, dilated = (float(entry) for entry in text.replace(";", ",").split(","))
    except ValueError:
        raise SettingsError("skip_views", text, SKIP_ALLOWED) from None
    if not (0 <= local <= MOST_WEIGHT and 0 <= dilated <= MOST_WEIGHT):
        raise SettingsError("skip_views", text, SKIP_ALLOWED)
    return local, dilated


def _spec(default: Any, kind: type, label: str, infotext: str, info: str = "", **limits: Any) -> Any:
    spec = Spec(kind, label, info, f"DemoFusion {infotext}".rstrip(), **limits)
    return field(default=default, metadata={"spec": spec})


def _number(default: float, label: str, infotext: str, info: str, limits: tuple[float, float, float]) -> Any:
    minimum, maximum, step = limits
    kind = type(default)
    return _spec(default, kind, label, infotext, info, minimum=minimum, maximum=maximum, step=step)


def _upscalers(choices: Choices) -> tuple[str, ...]:
    return (LATENT_UPSCALER, *choices.image_upscalers)


def _in_pixels(choices: Choices) -> tuple[str, ...]:
    return tuple(name + IN_PIXELS for name in choices.image_upscalers)


# minimum, maximum and step
SIDE = (0, 16384, 8)
WEIGHT = (0, 10, 0.1)
AS_SCALE = "in pixels; 0 = computed from the other side, or from Upscale by"


@dataclass(frozen=True)
class Settings:
    """All fields of a DemoFusion run. The order of the fields is the order of the API's positional arguments.

    `upscaler` determines how the anchor of a stage is computed:

    * "Latent" means LATENT, as in the paper.
    * The name of an image upscaler (Lanczos or one of the webui's) means MIXED.
    * The name of an image upscaler with the suffix " (pixels)" means PIXELS. The panel does not list these names, but
      accepts them, and so do the API, infotexts and the X/Y/Z plot.
    """

    enabled: bool = _spec(False, bool, "DemoFusion", "")
    preset: str = _spec(
        "Paper",
        str,
        "Preset",
        "preset",
        "sets the values for quality and speed, not the size",
        choices=lambda o: o.preset_names,
    )
    upscaler: str = _spec(
        LATENT_UPSCALER,
        str,
        "Upscaler",
        "upscaler",
        "enlarges the image before the model draws new detail",
        choices=_upscalers,
        unlisted=_in_pixels,
    )
    hires_steps: int = _number(
        0,
        "Hires steps",
        "hires steps",
        "this number times Denoising strength = steps of each stage; "
        "if it is 0 or higher than Sampling steps, Sampling steps is used instead",
        (0, 150, 1),
    )
    denoising_strength: float = _number(
        1.0,
        "Denoising strength",
        "denoising strength",
        "lower = closer to the base image, and faster",
        (0.05, 1, 0.05),
    )
    scale: float = _number(2.0, "Upscale by", "scale", "1 to 8", (1, 8, 0.05))
    width: int = _number(0, "Resize width to", "width", AS_SCALE, SIDE)
    height: int = _number(0, "Resize height to", "height", AS_SCALE, SIDE)
    img2img_first: bool = _spec(
        False, bool, "Base image", "img2img first", words=("Upscale the image as it is", "Run img2img first")
    )
    stages: str = _spec(
        EVERY,
        str,
        "Stages",
        "stages",
        "the image is enlarged in one or more stages; fewest = one stage up to 4x, else two; "
        "doubling = 2x, 4x, 8x; every = 2x, 3x, 4x and so on; or type the sizes of the stages, such as 2,4",
        words=STAGE_WORDS,
        read=parse_stages,
        texts=STAGES_ALLOWED,
        when_empty=EVERY,
    )
    overlap: float = _number(
        0.5,
        "Tile overlap",
        "overlap",
        "smallest overlap of neighboring tiles; lower = faster, but seams may be visible",
        (0, 0.9, 0.05),
    )
    feather: float = _number(
        0.0,
        "Feather",
        "feather",
        "how far neighboring tiles blend into each other; higher = seams are less visible",
        (0, 0.5, 0.05),
    )
    extra_noise: float = _number(
        0.0,
        "Extra noise",
        "extra noise",
        "higher = more fine detail; a value that is too high leaves grain",
        (0, 0.2, 0.01),
    )
    cosine_scale_1: float = _number(
        3.0,
        "Cosine scale 1",
        "cosine scale 1",
        "lower = closer to the image before the stage, but softer",
        WEIGHT,
    )
    cosine_scale_2: float = _number(
        1.0,
        "Cosine scale 2",
        "cosine scale 2",
        "lower = fewer repeated subjects, but more grain; in Fast and Turbo, only values below 0.5 have an effect",
        WEIGHT,
    )
    keep_colors: bool = _spec(False, bool, "Keep colors", "keep colors", "large areas keep the base image's colors")
    save_stages: bool = _spec(False, bool, "Save every stage", "save stages", "as a separate file")
    return_stages: bool = _spec(False, bool, "Show every stage", "return stages", "in the gallery")
    tile_size: float = _number(
        0.0,
        "Tile size",
        "tile size",
        "0 = as large as the base image; 0.5 to 2 = multiple of the size of the base image; "
        "8 to 512 = side of a tile in units of 8 pixels, for example 64 for 512 pixels; other values are not valid",
        (0, 512, 0.01),
    )
    tile_stride: int = _number(
        0,
        "Tile stride",
        "tile stride",
        "a tile starts at most this far to the right of the tile before, and at most this far below the tile above, "
        "in units of 8 pixels; 0 = computed from Tile overlap",
        (0, 512, 4),
    )
    jitter: bool = _spec(
        True, bool, "Jitter", "jitter", "moves the tiles by a random distance at every step; this hides seams"
    )
    sigma: float = _number(
        0.8,
        "Blur sigma",
        "sigma",
        "the image is blurred before the dilated views are taken from it; higher = stronger blur and a smoother result",
        (0.01, 10, 0.01),
    )
    cosine_scale_3: float = _number(
        1.0,
        "Cosine scale 3",
        "cosine scale 3",
        "how fast the blur of the dilated views fades during a stage; "
        "higher = less blur at every step, similar to a lower Blur sigma",
        WEIGHT,
    )
    skip_views: str = _spec(
        "",
        str,
        "Skip views below",
        "skip views",
        "two numbers that save time, such as 0.5,0.1: a step leaves out the tiles if their share in the mix is 0.5 or "
        "less, and the dilated views if their share is 0.1 or less; higher = shorter run",
        read=parse_skip,
        texts=SKIP_ALLOWED,
    )
    view_batch: int = _number(
        0,
        "View batch size",
        "view batch",
        "how many tiles and dilated views the model evaluates at once; 0 = the value in Settings",
        (0, 64, 1),
    )

    @property
    def anchor(self) -> str:
        """LATENT, PIXELS or MIXED, depending on the field `upscaler`."""
        if self.upscaler == LATENT_UPSCALER:
            return LATENT
        return PIXELS if self.upscaler.endswith(IN_PIXELS) else MIXED

    @property
    def image_upscaler(self) -> str:
        """The name of the image upscaler. Not used if `anchor` is LATENT."""
        return self.upscaler.removesuffix(IN_PIXELS)

    @property
    def local_threshold(self) -> float:
        """The highest weight of the tiles in the fused prediction at which a model call skips all tiles (0 to 0.5)."""
        return parse_skip(self.skip_views)[0]

    @property
    def dilated_threshold(self) -> float:
        """The highest weight of the dilated views at which a model call skips all dilated views (0 to 0.5)."""
        return parse_skip(self.skip_views)[1]


SPECS: dict[str, Spec] = {f.name: f.metadata["spec"] for f in fields(Settings)}
NAMES: tuple[str, ...] = tuple(SPECS)
CONTROLLED = NAMES[:-1]
"""The names of all fields that have a visible or hidden control in the panel. `view_batch` is on the settings page."""

ENABLED_KEY = SPECS["enabled"].infotext

OF_THE_REQUEST = frozenset(
    ("enabled", "scale", "width", "height", "preset", "view_batch", "save_stages", "return_stages", "img2img_first")
)
"""The names of the fields that no preset sets. Their values belong to one request, or depend on the computer."""

PRESET_FIELDS: tuple[str, ...] = tuple(name for name in NAMES if name not in OF_THE_REQUEST)
"""The names of the fields that a preset sets."""
