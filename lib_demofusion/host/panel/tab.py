"""The values of the webui's fields in a tab from which the summary line is computed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lib_demofusion.host.progress.webui_state import img2img_steps
from lib_demofusion.method.costs import Pass
from lib_demofusion.method.plan import CELL
from lib_demofusion.method.views import Size
from lib_demofusion.settings.fields import Settings

BY_SELECTION = {
    "resize_by": {"tab_resize_to": False, "tab_resize_by": True},
    "inpaint": {
        "img2img_tab": False,
        "img2img_sketch_tab": False,
        "inpaint_tab": True,
        "inpaint_sketch_tab": True,
        "inpaint_upload_tab": True,
        "batch_tab": False,
    },
}
"""The fields of TabValues whose values depend on the tabs that are selected inside img2img.

Each field has the element ids of the tabs, without `img2img_`, and the value that the field gets from each of them.
"""


@dataclass(frozen=True)
class TabValues:
    """The values of the webui's fields in a tab.

    Most attributes are named after the element id of the webui's component, without `txt2img_` or `img2img_`. If the
    webui has no such component in this tab, the default applies.
    """

    width: float = 512
    height: float = 512
    steps: float = 20
    sampling: str | None = None
    cfg_scale: float = 7
    batch_size: float = 1
    batch_count: float = 1
    denoising_strength: float = 0.75
    hr_checkbox: bool = False
    """Whether hires fix is on. The next four fields apply only to hires fix."""
    hires_steps: float = 0
    hr_scale: float = 2
    hr_resize_x: float = 0
    hr_resize_y: float = 0
    img2img: bool = False
    resize_by: bool = False
    """Whether img2img's size is the uploaded image's size times `scale`."""
    scale: float = 1
    scale_resolution_preview: str = ""
    """HTML with the size of the upload and of the result, `... 512x768 ... to ...`. Has no size without an upload."""
    override_settings: Sequence[str] = ()
    """The field "Override settings": settings from a pasted infotext that apply to this tab, such as `Tiling: True`."""
    script: str = ""
    """Title of the script that is chosen in the list "Script", or an empty text."""
    inpaint: bool = False
    """Whether a tab of img2img is selected in which the upload has a mask. The webui then redraws the masked part."""
    preset_picked: bool = False
    """Whether the hidden checkbox `preset_row.Choice.picked` is ticked."""

    @property
    def step_count(self) -> int:
        """Number of sampling steps, at least 1."""
        return max(1, int(self.steps or 1))

    @property
    def images(self) -> int:
        """Number of images that are sampled at once (the batch size)."""
        return max(1, int(self.batch_size or 1))


def base_image(settings: Settings, tab: TabValues) -> tuple[Size, list[Pass]]:
    """Returns the size of the base image in cells, and the webui's passes that create the base image.

    With hires fix, the base image is the result of hires fix, and there are two passes. If the upload is the base
    image and has no mask, the list is empty.
    """
    first, steps = _cells(tab.width, tab.height), tab.step_count
    if tab.img2img:
        source = re.search(r"(\d+)x(\d+)", tab.scale_resolution_preview or "") if tab.resize_by else None
        if source is not None:
            first = _cells(*(int(int(side) * (tab.scale or 0)) for side in source.groups()))
        redrawn = settings.img2img_first or tab.inpaint
        return first, [(img2img_steps(steps, tab.denoising_strength or 0), first)] if redrawn else []
    if not tab.hr_checkbox:
        return first, [(steps, first)]
    second = _cells(*_hires_pixels(tab))
    return second, [(steps, first), (int(tab.hires_steps or 0) or steps, second)]


def _hires_pixels(tab: TabValues) -> tuple[float, float]:
    """Returns the width and height of the result of hires fix in pixels.

    See calculate_target_resolution in modules/processing.py.
    """
    width, height = max(1, int(tab.width or 0)), max(1, int(tab.height or 0))
    wide, high = int(tab.hr_resize_x or 0), int(tab.hr_resize_y or 0)
    if not wide and not high:
        return width * (tab.hr_scale or 0), height * (tab.hr_scale or 0)
    return wide or high * width // height, high or wide * height // width


def _cells(width: float, height: float) -> Size:
    return max(1, int(height or 0) // CELL), max(1, int(width or 0) // CELL)
