"""Stand-in: runs jobs, and reports the progress of a job to the page."""

import html
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import torch.nn.functional as F
from gradio.processing_utils import encode_pil_to_base64
from modules import errors, paths_internal, processing, sd_samplers_common, shared
from modules.shared import opts, state
from PIL import Image

PREVIEW_CELLS = 16
"""Maximum side in latent cells of a latent that is decoded for the preview. Larger latents are reduced first."""
POLL_SECONDS = 0.25

one_job = threading.Lock()
"""The running job holds this lock. Other jobs wait for the lock."""


def params_file() -> Path:
    """Returns the file with the infotext of the last job. The button *Paste parameters* reads this file."""
    return Path(paths_internal.data_path, "params.txt")


def make(runner: Any, is_img2img: bool, parameters: dict[str, Any], args: list[Any]) -> Any:
    """Creates a job from the parameters in a tab and from `args`, the values of the scripts' inputs (`script_args`)."""
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
    """Runs a job. During the job, `shared.state` contains its progress."""
    with one_job:
        state.begin("job")
        try:
            return processing.process_images(p)
        finally:
            state.end()
            shared.total_tqdm.clear()
            p.close()


def run(runner: Any, is_img2img: bool, parameters: dict[str, Any], args: list[Any]) -> Iterator[tuple]:
    """Runs a job for the page. Yields updates for the progress bar, the gallery, the infotext and the comments.

    During the job, only the progress bar and the preview below it change.
    """
    if is_img2img and parameters["init_image"] is None:
        yield "", [], "", _paragraph("comments", 'img2img needs an image. Upload one below "Picture".')
        return
    result: list[tuple] = []

    def work() -> None:
        try:
            made = execute(make(runner, is_img2img, parameters, args))
        except Exception as error:
            errors.report("The job failed", exc_info=True)
            result.append(("", [], "", _paragraph("comments", f"{type(error).__name__}: {error}")))
            return
        params_file().parent.mkdir(parents=True, exist_ok=True)
        params_file().write_text(made.infotexts[0], encoding="utf-8")
        texts = _paragraph("infotext", made.infotexts[0]), _paragraph("comments", made.comments)
        result.append(("", made.images, *texts))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    preview = _Preview()
    while thread.is_alive():
        yield _bar() + preview.html(), gr.update(), gr.update(), gr.update()
        thread.join(POLL_SECONDS)
    yield result[0]


def _bar() -> str:
    percent = f"{100 * state.progress():.0f}%"
    label = html.escape(f"{state.textinfo}: {percent}" if state.textinfo else percent)
    bar = f'<div class="progress" style="width:{percent}">&nbsp;</div><span>{label}</span>'
    return f'<div class="progressDiv">{bar}</div>'


def _paragraph(kind: str, text: str) -> str:
    lines = "<br>".join(html.escape(line) for line in text.splitlines())
    return f"<p class='{kind}'>{lines}</p>"


class _Preview:
    """Renders the first of the job's current latents as a small image, at most once per second."""

    def __init__(self) -> None:
        self._html = ""
        self._rendered: Any = None
        self._time = 0.0

    def html(self) -> str:
        latent = state.current_latent
        if not opts.live_previews_enable or latent is None or latent is self._rendered or time.time() < self._time + 1:
            return self._html
        size = [max(1, round(n * min(1.0, PREVIEW_CELLS / max(latent.shape[-2:])))) for n in latent.shape[-2:]]
        image = sd_samplers_common.sample_to_image(F.interpolate(latent[:1], size, mode="area"))
        image = image.resize((256, 256 * image.height // image.width), Image.Resampling.BICUBIC)
        self._html = f'<img class="livePreview" src="{encode_pil_to_base64(image)}">'
        self._rendered, self._time = latent, time.time()
        return self._html
