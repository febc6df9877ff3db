"""Stand-in: the settings, the state of the running job, and the loaded checkpoint."""

import sys
import time
from types import SimpleNamespace
from typing import Any

import tqdm
from modules import options
from PIL import Image

OptionInfo = options.OptionInfo

opts = options.Options(
    data_labels={},
    enable_pnginfo=True,
    grid_format="png",
    grid_save=False,
    grid_only_if_multiple=True,
    img_max_size_mp=200,
    img2img_background_color="#ffffff",
    img2img_extra_noise=0.0,
    initial_noise_multiplier=1.0,
    live_previews_enable=True,
    return_grid=False,
    return_mask=False,
    return_mask_composite=False,
    samples_format="png",
    sd_vae_decode_method="Full",
    sd_vae_encode_method="Full",
    temp_dir="",
    tiling=False,
)
cmd_opts = SimpleNamespace(disable_console_progressbars=False)
device = "cpu"
sd_model: Any = None
"""The loaded checkpoint (see `sd_models.load_model`)."""


class Upscaler:
    """Enlarges images with one of PIL's filters. The webui also has upscalers that use models."""

    def __init__(self, resample: Image.Resampling) -> None:
        self._resample = resample

    def upscale(self, img: Image.Image, scale: float, selected_model: str | None = None) -> Image.Image:
        """Returns the image enlarged by `scale`, with both sides rounded down to multiples of 8 pixels."""
        width, height = (int(side * scale // 8) * 8 for side in img.size)
        return img.resize((width, height), self._resample)


sd_upscalers = [
    SimpleNamespace(name="Lanczos", data_path=None, scaler=Upscaler(Image.Resampling.LANCZOS)),
    SimpleNamespace(name="Nearest", data_path=None, scaler=Upscaler(Image.Resampling.NEAREST)),
]


class State:
    """The progress of the running job, and the user's requests to stop the job."""

    def __init__(self) -> None:
        self.begin("")
        self.end()

    def begin(self, job: str = "(unknown)") -> None:
        """Starts a job. Its `job_count`, the number of its parts, is -1 until the number is known."""
        self.job = job
        self.job_no = 0
        self.job_count = -1
        self.time_start = time.time()
        self.sampling_step = 0
        self.sampling_steps = 0
        self.current_latent: Any = None
        self.current_image_sampling_step = 0
        self.skipped = False
        self.interrupted = False
        self.stopping_generation = False
        self.textinfo: str | None = None

    def end(self) -> None:
        """Ends the job."""
        self.job = ""
        self.job_count = 0

    def nextjob(self) -> None:
        """Ends one part of the job."""
        self.job_no += 1
        self.sampling_step = 0
        self.current_image_sampling_step = 0

    def skip(self) -> None:
        """Requests that the job ends the current iteration and continues with the next one."""
        self.skipped = True

    def interrupt(self) -> None:
        """Requests that the job stops and returns its current result."""
        self.interrupted = True

    def progress(self) -> float:
        """Returns the completed share of the job in 0..1. The webui's page uses the same formula."""
        if self.job_count <= 0:
            return 0.0
        share = self.sampling_step / self.sampling_steps if self.sampling_steps else 0.0
        return min((self.job_no + share) / self.job_count, 1.0)


state = State()


class TotalTQDM:
    """The progress bar on the console. It counts the sampling steps of all parts of a job."""

    _tqdm: tqdm.tqdm | None = None

    def update(self) -> None:
        """Counts a step."""
        if self._shown():
            self._tqdm.update()

    def updateTotal(self, new_total: int) -> None:
        """Sets the number of steps of the whole job."""
        if self._shown():
            self._tqdm.total = new_total

    def clear(self) -> None:
        """Removes the bar."""
        if self._tqdm is not None:
            self._tqdm.close()
            self._tqdm = None

    def _shown(self) -> bool:
        """Creates the bar if necessary. Returns whether progress bars on the console are enabled."""
        if self._tqdm is None and not cmd_opts.disable_console_progressbars:
            total = max(state.job_count, 1) * state.sampling_steps
            self._tqdm = tqdm.tqdm(desc="Total progress", total=total, position=1, leave=False, file=sys.stderr)
        return self._tqdm is not None


total_tqdm = TotalTQDM()
