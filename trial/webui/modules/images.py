"""Stand-in: saves images with their infotext, resizes them and arranges them in grids."""

import math
from pathlib import Path
from typing import Any

from modules import shared
from PIL import Image
from PIL.PngImagePlugin import PngInfo


def resize_image(
    resize_mode: int, im: Image.Image, width: int, height: int, upscaler_name: str | None = None
) -> Image.Image:
    """Stretches an image to a size. If `upscaler_name` names an upscaler, first enlarges the image with this upscaler.

    `resize_mode` has no effect: the stand-in always stretches (mode 0). The webui also crops (1) or fills borders (2).
    """
    for upscaler in shared.sd_upscalers:
        if upscaler.name == upscaler_name:
            im = upscaler.scaler.upscale(im, max(width / im.width, height / im.height), upscaler.data_path)
    return im.resize((width, height), Image.Resampling.LANCZOS)


def flatten(img: Image.Image, bgcolor: str) -> Image.Image:
    """Removes transparency. Uploads in the stand-in have no transparency, so `bgcolor` has no effect."""
    return img.convert("RGB")


def image_grid(imgs: list[Image.Image], batch_size: int = 1, rows: int | None = None) -> Image.Image:
    """Arranges images of one size in a grid of `rows` rows, or by default about as many rows as columns."""
    rows = min(rows or round(math.sqrt(len(imgs))), len(imgs))
    columns = math.ceil(len(imgs) / rows)
    width, height = imgs[0].size
    grid = Image.new("RGB", (columns * width, rows * height), "white")
    for number, image in enumerate(imgs):
        grid.paste(image, (number % columns * width, number // columns * height))
    return grid


def save_image(
    image: Image.Image,
    path: Any,
    basename: str,
    seed: int | None = None,
    prompt: str | None = None,
    extension: str = "png",
    info: str | None = None,
    short_filename: bool = False,
    no_prompt: bool = False,
    grid: bool = False,
    pnginfo_section_name: str = "parameters",
    p: Any = None,
    existing_info: dict | None = None,
    forced_filename: str | None = None,
    suffix: str = "",
    save_to_dirs: bool | None = None,
) -> tuple[str, None]:
    """Saves an image. Returns the path of the image, and None.

    In place of None, the webui can return the path of a text file with the infotext.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    number = sum(1 for _ in folder.glob(f"*.{extension}"))
    file = folder / f"{number:05}-{seed}{suffix}.{extension}"
    text = PngInfo()
    if info is not None:
        text.add_text(pnginfo_section_name, info)
    image.save(file, pnginfo=text)
    image.already_saved_as = str(file)
    return str(file), None
