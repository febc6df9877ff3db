"""Stand-in: runs a job in parallel with the page, and reports its progress to the page."""

import base64
import html
import io
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from modules import errors, paths_internal, processing, sd_samplers_common, shared
from modules.call_queue import queue_lock
from modules.shared import opts, state
from PIL import Image

PREVIEW_CELLS = 16
POLL_SECONDS = 0.25


@dataclass
class Running:
    """The state of a running job for the page."""

    share: float
    text: str
    preview: str

    def html(self) -> str:
        """Returns the bar and the preview."""
        percent = f"{100 * self.share:.0f}%"
        label = html.escape(f"{self.text}: {percent}" if self.text else percent)
        picture = f'<img class="livePreview" src="{self.preview}">' if self.preview else ""
        bar = f'<div class="progress" style="width:{percent}">&nbsp;</div><span>{label}</span>'
        return f'<div class="progressDiv">{bar}</div>{picture}'


@dataclass
class Done:
    """The result of a job."""

    images: list = field(default_factory=list)
    infotext: str = ""
    comments: str = ""


def params_file() -> Path:
    """Returns the file with the last job's infotext, for the paste button."""
    return Path(paths_internal.data_path, "params.txt")


def make(runner: Any, is_img2img: bool, parameters: dict[str, Any], args: list[Any]) -> Any:
    """Creates the webui's processing object from the values of a tab."""
    values = dict(parameters)
    cls = processing.StableDiffusionProcessingTxt2Img
    if is_img2img:
        cls = processing.StableDiffusionProcessingImg2Img
        values["init_images"] = [values.pop("init_image")]
    folder = Path(paths_internal.data_path, "img2img-images" if is_img2img else "txt2img-images")
    p = cls(outpath_samples=folder, **values)
    p.scripts, p.script_args = runner, args
    return p


def execute(p: Any) -> processing.Processed:
    """Runs a job, and marks its begin and end in the page's state."""
    with queue_lock:
        state.begin("job")
        try:
            return processing.process_images(p)
        finally:
            state.end()
            shared.total_tqdm.clear()
            p.close()


def run(runner: Any, is_img2img: bool, parameters: dict[str, Any], args: list[Any]) -> Iterator[Running | Done]:
    """Yields Running during a job, then Done."""
    if is_img2img and parameters["init_image"] is None:
        yield Done(comments="img2img needs a picture to begin with")
        return
    done: list[Done] = []

    def work() -> None:
        try:
            processed = execute(make(runner, is_img2img, parameters, args))
        except Exception as error:
            errors.report("The job failed", exc_info=True)
            done.append(Done(comments=f"{type(error).__name__}: {error}"))
            return
        params_file().parent.mkdir(parents=True, exist_ok=True)
        params_file().write_text(processed.infotexts[0], encoding="utf-8")
        done.append(Done(processed.images, processed.infotexts[0], processed.comments))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    preview = _Preview()
    while thread.is_alive():
        yield Running(state.progress(), state.textinfo or "", preview.data_url())
        thread.join(POLL_SECONDS)
    yield done[0]


class _Preview:
    """Renders the latest latent as a small image, at most once per second."""

    def __init__(self) -> None:
        self._latent: Any = None
        self._url = ""
        self._made = 0.0

    def data_url(self) -> str:
        latent = state.current_latent
        if not opts.live_previews_enable or latent is None or latent is self._latent or time.time() < self._made + 1:
            return self._url
        self._latent = latent
        size = [max(1, round(n * min(1.0, PREVIEW_CELLS / max(latent.shape[-2:])))) for n in latent.shape[-2:]]
        image = sd_samplers_common.sample_to_image(F.interpolate(latent[:1], size, mode="area"))
        self._url = _as_url(image.resize((256, 256 * image.height // image.width), Image.Resampling.BICUBIC))
        self._made = time.time()
        return self._url


def _as_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def page_script(texts: list[str]) -> str:
    """Returns JavaScript that runs each text as a script of the page, in order."""
    add = "const s = document.createElement('script'); s.textContent = text; document.head.appendChild(s);"
    return f"() => {{ for (const text of {json.dumps(texts)}) {{ {add} }} }}"
