"""Stand-in: upscalers. The webui has more of them, including models."""

from dataclasses import dataclass
from typing import Any

from PIL import Image


class Upscaler:
    """Enlarges images with one of PIL's filters."""

    def __init__(self, resample: Image.Resampling) -> None:
        self._resample = resample

    def upscale(self, img: Image.Image, scale: float, selected_model: str | None = None) -> Image.Image:
        """Returns the image enlarged by `scale`, rounded to multiples of 8 pixels as in the webui."""
        width, height = (int(side * scale // 8) * 8 for side in img.size)
        return img.resize((width, height), self._resample)


@dataclass
class UpscalerData:
    """An entry of the webui's lists of upscalers."""

    name: str
    data_path: str | None
    scaler: Any
    scale: int = 4


def known() -> list[UpscalerData]:
    """Returns the upscalers that need no model."""
    filters = {"Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}
    return [UpscalerData(name, None, Upscaler(filter_)) for name, filter_ in filters.items()]
