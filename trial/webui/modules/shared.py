"""Stand-in: the data that every part of the webui reads."""

import sys
from types import SimpleNamespace
from typing import Any

import tqdm
from modules import options, upscaler
from modules.shared_state import State

OptionInfo = options.OptionInfo

opts = options.Options(
    enable_pnginfo=True,
    eta_ancestral=1.0,
    eta_ddim=0.0,
    grid_format="png",
    grid_save=False,
    grid_only_if_multiple=True,
    img_max_size_mp=200,
    img2img_background_color="#ffffff",
    img2img_extra_noise=0.0,
    img2img_fix_steps=False,
    initial_noise_multiplier=1.0,
    live_previews_enable=True,
    no_dpmpp_sde_batch_determinism=False,
    randn_source="CPU",
    return_grid=False,
    return_mask=False,
    return_mask_composite=False,
    s_churn=0.0,
    s_noise=1.0,
    s_tmax=0.0,
    s_tmin=0.0,
    samples_format="png",
    samples_save=True,
    sdxl_crop_left=0,
    sdxl_crop_top=0,
    save_incomplete_images=False,
    sd_vae_decode_method="Full",
    temp_dir="",
    tiling=False,
    sd_vae_encode_method="Full",
)
"""The settings, without a page."""

sd_upscalers = upscaler.known()
state = State()
device = "cpu"
sd_model: Any = None
"""The loaded checkpoint; see sd_models.load_model."""

cmd_opts = SimpleNamespace(disable_console_progressbars=False, freeze_settings=False)


class TotalTQDM:
    """The bar on the console for all steps of a job."""

    def __init__(self) -> None:
        self._tqdm: tqdm.tqdm | None = None

    def reset(self) -> None:
        """Begins a bar."""
        total = max(state.job_count, 1) * state.sampling_steps
        self._tqdm = tqdm.tqdm(desc="Total progress", total=total, position=1, leave=False, file=sys.stderr)

    def update(self) -> None:
        """Counts a step."""
        if cmd_opts.disable_console_progressbars:
            return
        if self._tqdm is None:
            self.reset()
        self._tqdm.update()

    def updateTotal(self, new_total: int) -> None:
        """Sets the number of steps."""
        if cmd_opts.disable_console_progressbars:
            return
        if self._tqdm is None:
            self.reset()
        self._tqdm.total = new_total

    def clear(self) -> None:
        """Ends the bar."""
        if self._tqdm is not None:
            self._tqdm.close()
            self._tqdm = None


total_tqdm = TotalTQDM()
