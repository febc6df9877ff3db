"""Makes the base image, every stage, and a comparison of ways to a larger image, without a page."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from modules import jobs, scripts, shared
from PIL import Image, ImageDraw, ImageFont

from lib_demofusion.settings.presets import DEFAULT_PRESET
from trial.sampling import GUIDANCE

NATIVE = 128
PART, COLUMN = 320, 200
"""Largest side of a part on the sheet, and smallest width of a column."""
MARGIN, LABEL = 12, 44
PAPER, INK, FAINT = "white", "black", "#666666"


def settings(options: Any, enabled: bool) -> list[Any]:
    """Returns the script's arguments."""
    # such a small model gains from larger batches than the automatic batch size on a CPU
    return [0, {"enabled": enabled, "scale": options.scale, "return_stages": True, "view_batch": 8}]


def parameters(options: Any, size: int) -> dict[str, Any]:
    """Returns a txt2img job's parameters for a square image."""
    return {
        "prompt": options.prompt,
        "seed": options.seed,
        "steps": options.steps,
        "sampler_name": options.sampler,
        "cfg_scale": GUIDANCE,
        "width": size,
        "height": size,
        "do_not_save_samples": True,
    }


def sample(options: Any, size: int, demofusion: bool) -> Any:
    """Runs one job of the webui and returns its result."""
    runner = scripts.scripts_txt2img
    return jobs.execute(jobs.make(runner, False, parameters(options, size), settings(options, demofusion)))


def main(options: argparse.Namespace) -> None:
    """Writes the images and the sheet into the folder `options.out`."""
    set_up_scripts()
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.time()
    large = NATIVE * options.scale
    with bar("DemoFusion"):
        result = sample(options, NATIVE, True)
    with bar("directly at the large size"):
        direct = sample(options, large, False).images[0]
    # the final image comes first, followed by the base and the stages in between
    final, stages = result.images[0], result.images[1:]
    for number, picture in enumerate([*stages, final]):
        name = f"stage-{number}" if number else "base"
        save(picture, options.out / f"{name}-{picture.width}x{picture.height}.png")
    columns = {
        "base image, bicubic": stages[0].resize(final.size, Image.Resampling.BICUBIC),
        "sampled at this size": direct,
        f"DemoFusion, preset {DEFAULT_PRESET}": final,
    }
    for name, picture in zip(("bicubic", "direct"), columns.values()):
        save(picture, options.out / f"{name}-{final.width}x{final.height}.png")
    save(sheet(columns, options), options.out / "comparison.png")
    print(f"{len(list(options.out.glob('*.png')))} pictures in {options.out}, {time.time() - began:.0f} s")
    for comment in result.comments.splitlines():
        print(comment)


def set_up_scripts() -> None:
    """Assigns the txt2img scripts their range of the arguments, as the page does."""
    import gradio as gr

    with gr.Blocks(analytics_enabled=False):
        scripts.scripts_txt2img.initialize_scripts(False)
        scripts.scripts_txt2img.setup_ui()


@contextmanager
def bar(title: str) -> Iterator[None]:
    """Shows the running job's progress on the console. In a file it writes a line for every tenth."""
    shared.cmd_opts.disable_console_progressbars = True
    ended = threading.Event()
    terminal = sys.stderr.isatty()

    def show(percent: int, text: str) -> None:
        line = f"{text:<28}{percent:4}%  {'#' * (percent // 4):<25} {time.time() - began:4.0f} s"
        sys.stderr.write(f"\r{line}" if terminal else f"{line}\n")
        sys.stderr.flush()

    def watch() -> None:
        shown = -1
        while not ended.wait(0.2):
            percent = int(100 * shared.state.progress())
            if percent >= shown + (1 if terminal else 10):
                shown = percent
                show(percent, shared.state.textinfo or title)
        show(100, title)
        sys.stderr.write("\n" if terminal else "")

    began = time.time()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def save(picture: Image.Image, path: Path) -> None:
    """Writes an image atomically, so that another start never finds a partial file."""
    part = path.with_suffix(".part")
    picture.save(part, "png")
    part.replace(path)


def detailed_box(picture: Image.Image, side: int) -> tuple[int, int, int, int]:
    """Returns the square of the given side in which the image has the most contrast."""
    pixels = np.asarray(picture.convert("L"), dtype=np.float64)

    def starts(length: int) -> list[int]:
        return [*range(0, length - side, max(1, side // 8)), length - side]

    places = [
        (pixels[y : y + side, x : x + side].std(), x, y) for y in starts(picture.height) for x in starts(picture.width)
    ]
    _, x, y = max(places, key=lambda place: place[0])
    return x, y, x + side, y + side


def sides(width: int) -> tuple[int, int]:
    """Returns the sides on the sheet of a whole image, and of a part at 1:1, which is larger, for images of `width`."""
    part = min(PART, width * 5 // 8)
    return part * 5 // 8, part


def sheet(columns: dict[str, Image.Image], options: Any) -> Image.Image:
    """Draws the images side by side: whole and reduced at the top, and a part of each at 1:1 at the bottom."""
    first = next(iter(columns.values()))
    whole, part = sides(first.width)
    box = detailed_box(first, part)
    step = MARGIN + max(part, COLUMN)
    page = Image.new("RGB", (MARGIN + len(columns) * step, 3 * LABEL + whole + part + 2 * MARGIN), PAPER)
    pen = _Pen(page)
    pen.write((MARGIN, MARGIN), f"“{options.prompt}”, {NATIVE}x{NATIVE} to {first.width}x{first.height}", 18)
    details = f"small bundled model, {options.sampler}, {options.steps} steps, seed {options.seed}"
    pen.write((MARGIN, MARGIN + 22), details, 12, FAINT)
    for i, (label, picture) in enumerate(columns.items()):
        x = MARGIN + i * step
        pen.write((x, LABEL + MARGIN + 18), label, 15)
        page.paste(picture.resize((whole, whole), Image.Resampling.LANCZOS), (x, 2 * LABEL + MARGIN))
        page.paste(picture.crop(box), (x, 3 * LABEL + whole))
    pen.write((MARGIN, 3 * LABEL + whole - 20), f"part of {part}x{part} pixels at 1:1", 12, FAINT)
    return page


class _Pen(SimpleNamespace):
    """Draws text on an image."""

    def __init__(self, page: Image.Image):
        super().__init__(draw=ImageDraw.Draw(page))

    def write(self, place: tuple[int, int], text: str, size: int, colour: str = INK) -> None:
        self.draw.text(place, text, fill=colour, font=ImageFont.load_default(size))
