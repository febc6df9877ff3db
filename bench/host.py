"""Measures DemoFusion in a running webui: `python -m bench.host http://127.0.0.1:7860`.

Start the webui with --api, and load a checkpoint. The command makes images of three prompts with every method: the base
image alone, hires fix, and every preset. It prints a report, and writes the report, the images, and a sheet of the
images to a folder. You can paste the report into the issue form "Results from my card". Nothing is uploaded.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from PIL import Image, ImageChops

from bench.card.report import gigabytes, table
from lib_demofusion import __version__
from lib_demofusion.method.costs import run_costs
from lib_demofusion.method.plan import CELL, make_plan
from lib_demofusion.settings.presets import PRESETS
from lib_demofusion.settings.reading import parse_settings
from trial.sheet import contact_sheet

PROMPTS = (
    "a lighthouse on a cliff in a storm, breaking waves, evening light",
    "portrait of an old fisherman with a beard, window light, photograph",
    "a red fox asleep on autumn leaves, close view",
)
STEPS, SAMPLER, HIRES_STRENGTH = 20, "Euler", 0.4
HEAD = ("Method", "Seconds", "Base images", "Computed", "Memory", "Remarks")

say = partial(print, file=sys.stderr, flush=True)


class HostError(Exception):
    """A request failed, or the webui lacks the extension. The message is printed, or becomes a remark in the report."""


class Webui:
    """The API of a running webui."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.peak = 0
        """The largest amount of memory, in bytes, that `read_memory` has found since `peak` was set to 0.

        It is the memory of all processes on the GPU. If there is no GPU, it is the memory of the webui's process.
        """

    def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Requests /sdapi/v1/`path` (with `body`: by POST), and returns the answer. Raises HostError if this fails."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/sdapi/v1/{path}", data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                raise HostError(f"{self.url} has no API. Start the webui with --api.") from None
            text = error.read().decode(errors="replace")
            found = re.search(r'"errors": *"([^"]+)', text)
            raise HostError(f"{path}: {error.code} {found[1] if found else text[:300]}") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise HostError(f"No webui answers at {self.url} ({reason}). Is it running, with --api?") from None

    def read_memory(self) -> None:
        """Reads the memory in use and updates `peak`. Raises HostError if the webui does not answer."""
        memory = self.call("memory")
        used = (memory.get("cuda", {}).get("system") or memory["ram"])["used"]
        self.peak = max(used, self.peak)

    def watch(self) -> None:
        """Calls `read_memory` about three times a second, until a request fails."""
        with suppress(HostError):
            while True:
                self.read_memory()
                time.sleep(0.3)

    def make(self, request: dict[str, Any], prompt: str, side: int) -> tuple[Image.Image, str, float]:
        """Makes a square image of `side` pixels. Returns the image, its infotext and the duration in seconds.

        `request` contains the fields of the API in which the methods differ.
        """
        body = {"prompt": prompt, "seed": 1, "steps": STEPS, "width": side, "height": side, "sampler_name": SAMPLER}
        body |= {"cfg_scale": 7.0, "save_images": False, "do_not_save_grid": True, **request}
        begin = time.perf_counter()
        answer = self.call("txt2img", body)
        seconds = time.perf_counter() - begin
        png = base64.b64decode(answer["images"][0].rpartition(",")[2])
        return Image.open(io.BytesIO(png)).convert("RGB"), json.loads(answer["info"])["infotexts"][0], seconds


@dataclass
class Way:
    """A compared method. `request` contains its fields of the API. `seconds` and `files` have one entry per image."""

    name: str
    request: dict[str, Any]
    computed: float | None = None
    """The expected duration, divided by that of a base image, as in README and in the panel. None for hires fix."""
    seconds: list[float] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    peak: int = 0  # memory in bytes (see `Webui.peak`)
    remark: str = ""  # the error of a request, or DemoFusion's messages in the infotext of the last image

    def measure(self, webui: Webui, side: int, folder: Path) -> None:
        """Makes and saves an image of every prompt. If a request fails, stores the error and makes no more images."""
        webui.peak = 0
        try:
            for number, prompt in enumerate(PROMPTS, 1):
                image, text, seconds = webui.make(self.request, prompt, side)
                file = folder / f"{self.name.lower().replace(' ', '-')}-{number}.png"
                image.save(file)
                self.seconds.append(seconds)
                self.files.append(file)
                self.remark = "; ".join(re.findall(r"DemoFusion (?:error|note|stopped): (\"[^\"]*\"|[^,]*)", text))
                say(f"{self.name}, prompt {number} of {len(PROMPTS)}: {seconds:.1f} s")
        except HostError as problem:
            self.remark = str(problem)
        with suppress(HostError):
            # a request that fails at once can end between two readings of `watch`
            webui.read_memory()
        self.peak = webui.peak

    def row(self, base: float) -> list[str]:
        """Returns the cells of the method's row in the table. `base` is the duration of a base image in seconds."""
        seconds = [f"{mean(self.seconds):.1f}", f"{mean(self.seconds) / base:.1f}"] if self.seconds else ["", ""]
        computed = f"{self.computed:.1f}" if self.computed else ""
        return [self.name, *seconds, computed, gigabytes(self.peak) if self.peak else "", self.remark]


def ways(side: int, large: bool, upscaler: str) -> list[Way]:
    """Returns every method to measure, for square base images of `side` pixels.

    Hires fix (with `upscaler`) and the presets enlarge by 2. If `large` is set, the presets also enlarge by 4.
    """
    hires = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": upscaler, "denoising_strength": HIRES_STRENGTH}
    found = [Way("Base image", {}, 1.0), Way("Hires fix 2x", {**hires, "hr_additional_modules": []})]
    for scale in (2, 4) if large else (2,):
        for preset in reversed(PRESETS):
            values = {"enabled": True, "preset": preset, "scale": scale}
            settings = parse_settings(values)
            costs = run_costs(make_plan(settings, (side // CELL, side // CELL)), settings, STEPS, two_calls=False)
            request = {"alwayson_scripts": {"DemoFusion Hires": {"args": [values]}}}
            found.append(Way(f"{preset} {scale}x", request, 1 + sum(costs.stages) / costs.base))
    return found


def run(webui: Webui, side: int, large: bool, folder: Path) -> None:
    """Measures every method and writes the report.

    `side` is the side of the base image in pixels. If it is 0, the name of the checkpoint determines the side.
    """
    if "demofusion hires" not in [name.lower() for name in webui.call("scripts")["txt2img"]]:
        raise HostError(f"{webui.url} has no DemoFusion Hires. Install the extension and restart the webui.")
    checkpoint = str(webui.call("options")["sd_model_checkpoint"]).lower()
    side = side or (1024 if re.search("xl|pony|illustrious|noob", checkpoint) else 512)
    # Forge Neo has no Lanczos
    upscaler = "Lanczos" if "Lanczos" in [each["name"] for each in webui.call("upscalers")] else "Latent"
    made, same = ways(side, large, upscaler), "not compared"
    folder.mkdir(parents=True, exist_ok=True)
    threading.Thread(target=webui.watch, daemon=True).start()
    # not measured, because the first image of a process takes longer
    webui.make({}, PROMPTS[0], side)
    before, text, base = webui.make({}, PROMPTS[0], side)
    # hires fix has no computed duration, so it is assumed to take as long as three base images
    total = base * len(PROMPTS) * sum(way.computed or 3.0 for way in made)
    say(f"This takes about {total / 60 + 1:.0f} minutes. If you press Ctrl+C, the report contains the results so far.")
    try:
        for way in made:
            way.measure(webui, side, folder)
        after, _, _ = webui.make({}, PROMPTS[0], side)
        most = max(high for _, high in ImageChops.difference(before, after).getextrema())
        same = f"differs by up to {most} of 255" if most else "the same, bit for bit"
    except (KeyboardInterrupt, HostError) as problem:
        say(f"Stopped. {problem}")
    hires = f"Hires fix: {upscaler}, {STEPS} steps, denoising strength {HIRES_STRENGTH}."
    heading = [f"{len(PROMPTS)} prompts, {side}x{side}, {STEPS} steps of {SAMPLER}. {hires}"]
    heading += [f"Base image of the first prompt, made again after all methods: {same}."]
    write(made, text, heading, mean(made[0].seconds or [base]), folder)


def write(made: list[Way], text: str, heading: list[str], base: float, folder: Path) -> None:
    """Writes the report, and a sheet with the images of each method that made all its images.

    `text` is the infotext of any image. `heading` contains the lines above the table. `base`: see `Way.row`.
    """
    version, checkpoint = (re.search(rf"{key}: ([^,\n]+)|$", text)[1] or "unknown" for key in ("Version", "Model"))
    first = f"DemoFusion Hires {__version__} in webui {version}, checkpoint {checkpoint}"
    lines = "\n".join([first, "", *heading, "", *table(HEAD, [way.row(base) for way in made]), ""])
    (folder / "report.md").write_text(lines, encoding="utf-8")
    complete = [way for way in made if len(way.files) == len(PROMPTS)]
    columns = [(way.name, f"{mean(way.seconds):.1f} s", way.files) for way in complete]
    contact_sheet(columns, PROMPTS, side=320).save(folder / "sheet.jpg", quality=92)
    print(lines)
    say(f"The report, the images and a sheet of the images are in {folder.resolve()}.")


def main(arguments: list[str]) -> int:
    """Runs the command line. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.host", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", metavar="URL", help="address of the webui, for instance http://127.0.0.1:7860")
    parser.add_argument("--large", action="store_true", help="measure the presets at 4x too")
    size = "side of the base image in pixels (default: 1024 if the checkpoint's name looks like SDXL, else 512)"
    parser.add_argument("--size", type=int, default=0, help=size)
    parser.add_argument("--out", type=Path, default=Path("host-report"), help="folder (default: host-report)")
    options = parser.parse_args(arguments)
    if options.size < 0 or options.size % CELL:
        parser.error(f"--size: {options.size} is not valid. Use a multiple of {CELL}.")
    try:
        run(Webui(options.url), options.size, options.large, options.out)
    except (HostError, OSError) as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
