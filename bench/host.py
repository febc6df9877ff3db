"""Measures DemoFusion in a running webui: `python -m bench.host http://127.0.0.1:7860`.

Start the webui with --api, and load a checkpoint. The command makes images of three prompts with every method: the base
image alone, hires fix, and every preset. It prints the report and writes it to a folder, with a contact sheet. You can
paste the report into the issue form "Results from my card". Nothing is uploaded.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
import statistics
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

try:
    from PIL import Image, ImageChops

    from lib_demofusion import __version__
    from lib_demofusion.method.costs import run_costs
    from lib_demofusion.method.plan import CELL, make_plan
    from lib_demofusion.settings.presets import PRESETS
    from lib_demofusion.settings.reading import parse_settings
    from trial.sheet import contact_sheet
except ImportError as problem:
    python = "Start it with the Python of your webui, for instance venv/bin/python -m bench.host"
    sys.exit(f"This needs the package {problem.name}. {python}")

PROMPTS = (
    "a lighthouse on a cliff in a storm, breaking waves, evening light",
    "portrait of an old fisherman with a beard, window light, photograph",
    "a red fox asleep on autumn leaves, close view",
)
SEED, STEPS, SAMPLER, CFG = 1, 20, "Euler", 7.0
HIRES_STRENGTH = 0.4
SIDE = 320
"""Side of an image in the contact sheet, in pixels."""
EVERY = 0.3
"""Seconds between two measurements of the memory."""
GIB = 1 << 30
HEAD = ("Method", "Seconds", "Base images", "Promised", "Memory", "Remarks")


class HostError(Exception):
    """The webui gives no valid answer. The message is for the person who started the command."""


class Webui:
    """The API of a running webui."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Returns the answer to a request. Raises HostError if there is none."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/sdapi/v1/{path}", data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                raise HostError(f"{self.url} has no API. Start the webui with --api.") from None
            raise HostError(f"{path}: {error.code} {_reason(error.read().decode(errors='replace'))}") from None
        except (urllib.error.URLError, ConnectionError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise HostError(f"No webui answers at {self.url} ({reason}). Is it running, with --api?") from None

    def memory(self) -> int:
        """Returns the bytes in use on the card, or those of the webui's process if it has no card."""
        told = self.call("memory")
        card = told.get("cuda", {}).get("system")
        return int(card["used"] if card else told["ram"]["used"])


def _reason(text: str) -> str:
    """Returns the webui's error message: the text in its JSON, or the whole response."""
    try:
        told = json.loads(text)
        text = next(str(told[key]) for key in ("errors", "message", "detail", "error") if told.get(key))
    except (ValueError, AttributeError, StopIteration):
        pass
    return " ".join(text.split())[:300]


def hires_upscaler(webui: Webui) -> str:
    """Returns the upscaler for hires fix: Lanczos, or Latent where a webui such as Forge Neo has no Lanczos."""
    return "Lanczos" if "Lanczos" in [each.get("name") for each in webui.call("upscalers")] else "Latent"


@dataclass
class Way:
    """A method of making an image, and its results so far."""

    name: str
    request: dict[str, Any] = field(default_factory=dict)
    promised: float | None = None
    """Computed duration in base images, as in README and in the line below the panel's title."""
    seconds: list[float] = field(default_factory=list)
    memory: int = 0
    """Maximum bytes in use."""
    remarks: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def ways(side: int, large: bool, upscaler: str) -> list[Way]:
    """Returns every method to measure, for square base images of `side` pixels. `large` adds 4x."""
    hires = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": upscaler, "denoising_strength": HIRES_STRENGTH}
    found = [Way("Base image", promised=1.0), Way("Hires fix 2x", {**hires, "hr_additional_modules": []})]
    for scale in (2, 4) if large else (2,):
        for preset in reversed(PRESETS):
            values = {"preset": preset, "scale": scale}
            settings = parse_settings(values)
            costs = run_costs(make_plan(settings, (side // CELL, side // CELL)), settings, STEPS, two_calls=False)
            script = {"DemoFusion Hires": {"args": [{"enabled": True, **values}]}}
            request = {"alwayson_scripts": script}
            found.append(Way(f"{preset} {scale}x", request, 1 + sum(costs.stages) / costs.base))
    return found


def make(webui: Webui, request: dict[str, Any], prompt: str, side: int) -> tuple[Image.Image, str, float]:
    """Makes an image in the webui. Returns the image, its infotext and the duration in seconds."""
    body = {"prompt": prompt, "seed": SEED, "steps": STEPS, "width": side, "height": side, "cfg_scale": CFG}
    body |= {"sampler_name": SAMPLER, "save_images": False, "do_not_save_grid": True, **request}
    begin = time.perf_counter()
    answer = webui.call("txt2img", body)
    seconds = time.perf_counter() - begin
    with Image.open(io.BytesIO(base64.b64decode(answer["images"][0].partition(",")[2] or answer["images"][0]))) as png:
        return png.convert("RGB"), json.loads(answer["info"])["infotexts"][0], seconds


@contextmanager
def watched(webui: Webui, way: Way) -> Iterator[None]:
    """Measures the webui's memory repeatedly within the block, and records the maximum."""
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            try:
                way.memory = max(way.memory, webui.memory())
            except (HostError, KeyError):
                return
            done.wait(EVERY)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def measure(webui: Webui, way: Way, side: int, folder: Path) -> str:
    """Makes an image of every prompt with one method. Saves the images and the results.

    Returns the infotext of the last image.
    """
    text = ""
    for number, prompt in enumerate(PROMPTS, 1):
        with watched(webui, way):
            image, text, seconds = make(webui, way.request, prompt, side)
        way.seconds.append(seconds)
        way.files.append(folder / f"{way.name.lower().replace(' ', '-')}-{number}.png")
        image.save(way.files[-1])
        told = re.findall(r"DemoFusion (?:error|note|stopped): (\"[^\"]*\"|[^,]*)", text)
        way.remarks += [remark for remark in told if remark not in way.remarks]
        print(f"{way.name}, prompt {number} of {len(PROMPTS)}: {seconds:.1f} s", file=sys.stderr, flush=True)
    return text


def row(way: Way, base: Way) -> str:
    """Returns a line of the table."""
    if not way.seconds:
        cells = [way.name, "", "", "", "", "; ".join(way.remarks) or "not measured"]
    else:
        seconds = statistics.mean(way.seconds)
        times = f"{seconds / statistics.mean(base.seconds):.1f}" if base.seconds else ""
        promised = "" if way.promised is None else f"{way.promised:.1f}"
        memory = f"{way.memory / GIB:.2f} GB" if way.memory else ""
        cells = [way.name, f"{seconds:.1f}", times, promised, memory, "; ".join(way.remarks)]
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def difference(before: Image.Image, after: Image.Image) -> str:
    """Describes the difference between two images of the same request."""
    if before.size != after.size:
        return f"differs in size ({before.size} and {after.size})"
    most = max(high for _, high in ImageChops.difference(before, after).getextrema())
    return "the same, bit for bit" if most == 0 else f"differs by up to {most} of 255"


def report(made: list[Way], text: str, side: int, same: str) -> str:
    """Returns the report as Markdown. `text` is the infotext of an image."""
    versions = {key: re.search(rf"{key}: ([^,\n]+)", text) for key in ("Version", "Model")}
    version, model = (found[1] if found else "unknown" for found in versions.values())
    lines = [f"DemoFusion Hires {__version__} in webui {version}, checkpoint {model}", ""]
    upscaler = next((way.request["hr_upscaler"] for way in made if "hr_upscaler" in way.request), "none")
    hires = f"Hires fix: {upscaler}, {STEPS} steps, denoising strength {HIRES_STRENGTH}."
    lines += [f"{len(PROMPTS)} prompts, {side}x{side}, {STEPS} steps of {SAMPLER}. {hires}"]
    lines += [f"The base image was made again after all others. Compared with the first one: {same}."]
    lines += ["", "| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|", *(row(way, made[0]) for way in made), ""]
    return "\n".join(lines)


def native_side(webui: Webui) -> int:
    """Guesses the side of the base image from the checkpoint's name."""
    name = str(webui.call("options").get("sd_model_checkpoint") or "").lower()
    return 1024 if any(word in name for word in ("xl", "pony", "illustrious", "noob")) else 512


def check(webui: Webui) -> None:
    """Raises HostError if the webui does not have DemoFusion."""
    scripts = webui.call("scripts").get("txt2img") or []
    if "demofusion hires" not in [str(name).lower() for name in scripts]:
        raise HostError(
            f"The webui at {webui.url} has no DemoFusion Hires. Install the extension and restart the webui."
        )


def run(options: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Measures every method, and writes the report and the contact sheet."""
    webui = Webui(options.url)
    check(webui)
    side = options.size or native_side(webui)
    made, same, text = ways(side, options.large, hires_upscaler(webui)), "not compared", ""
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        # the first image of a process is slower
        make(webui, {}, PROMPTS[0], side)
        before, text, seconds = make(webui, {}, PROMPTS[0], side)
        total = seconds * len(PROMPTS) * sum(way.promised or 3.0 for way in made)
        say(f"This takes about {total / 60 + 1:.0f} minutes. With Ctrl+C you get the report of what is done by then.")
        for way in made:
            try:
                text = measure(webui, way, side, options.out)
            except HostError as problem:
                way.remarks.append(str(problem))
        same = difference(before, make(webui, {}, PROMPTS[0], side)[0])
    except KeyboardInterrupt:
        say("Stopped.")
    written = report(made, text, side, same)
    (options.out / "report.md").write_text(written, encoding="utf-8")
    complete = [way for way in made if len(way.files) == len(PROMPTS)]
    columns = [(way.name, f"{statistics.mean(way.seconds):.1f} s", way.files) for way in complete]
    if columns:
        contact_sheet(columns, PROMPTS, SIDE).save(options.out / "sheet.jpg", quality=92)
    print(written)
    say(f"Report, images and contact sheet are in {options.out.resolve()}.")


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.host", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", metavar="URL", help="address of the webui, for instance http://127.0.0.1:7860")
    parser.add_argument("--large", action="store_true", help="measure 4x too")
    parser.add_argument("--size", type=int, help="side of the base image (default: 1024 for SDXL, else 512)")
    parser.add_argument("--out", type=Path, default=Path("host-report"), help="folder (default: host-report)")
    options = parser.parse_args(arguments)
    if options.size and (options.size < 64 or options.size % CELL):
        parser.error(f"--size: {options.size} is not valid. Use a multiple of {CELL} that is at least 64.")
    try:
        run(options, lambda text: print(text, file=sys.stderr, flush=True))
    except (HostError, OSError) as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
