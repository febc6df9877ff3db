"""The script that the webui loads. It forwards the webui's hooks to the other modules of this package."""

from __future__ import annotations

from typing import Any

from modules import script_callbacks, scripts

from lib_demofusion.host import backends, hooks
from lib_demofusion.host.common import options
from lib_demofusion.host.panel import build, page, xyz

UNSUPPORTED = (
    "DemoFusion Hires needs webui 1.8 or newer. This webui has no `post_sample` hook, so the panel is disabled"
)


def supported() -> bool:
    """Returns whether the host has the hook in which the stages run (webui 1.8 and newer)."""
    return hasattr(scripts.Script, "post_sample")


class DemoFusionHires(scripts.Script):
    """Adds a panel to txt2img and img2img, and runs the stages of DemoFusion after the base image."""

    def __init__(self) -> None:
        self.panel: build.Panel | None = None
        self.tab_components = page.TabComponents()

    def title(self) -> str:
        return "DemoFusion Hires"

    def show(self, is_img2img: bool) -> object:
        if not supported():
            return False
        # registered here because `show` runs before any script creates its controls. With --nowebui, `on_before_ui`
        # runs after the X/Y/Z plot has read its axes
        xyz.register()
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        return build.build(self)

    def after_component(self, component: Any, **kwargs: Any) -> None:
        page.component_of_tab(self, component, kwargs.get("elem_id"))

    def before_process(self, p: Any, *args: Any) -> None:
        hooks.before_process(p)

    def process(self, p: Any, *args: Any) -> None:
        hooks.process(p, args)

    def process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        hooks.process_batch(p)

    def post_sample(self, p: Any, ps: Any, *args: Any) -> None:
        hooks.post_sample(p, ps)

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        hooks.postprocess(p, processed)


def register() -> None:
    """Registers the webui's callbacks. The webui removes them at each "Reload UI"."""
    script_callbacks.on_after_component(page.component_of_page)
    script_callbacks.on_ui_settings(options.register)
    backends.greet()
