"""The extension's entry point: every hook of the webui is registered here and handed on to lib_demofusion.host."""

from modules import script_callbacks, scripts

from lib_demofusion.host import backends, compat, hooks, options
from lib_demofusion.host.panel import build, page, xyz


class DemoFusionHires(scripts.Script):
    """Stages of DemoFusion after the base picture, steered by a panel in txt2img and img2img."""

    def __init__(self):
        self.panel = None
        self.tab_components = page.TabComponents()

    def title(self):
        return "DemoFusion Hires"

    def show(self, is_img2img):
        if not compat.supported():
            return False
        # before any script makes its controls: with --nowebui `on_before_ui` comes after that, too late for the plot
        xyz.register()
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return build.build(self)

    def after_component(self, component, **kwargs):
        page.component_of_tab(self, component, kwargs.get("elem_id"))

    def process(self, p, *args):
        hooks.process(p, args)

    def process_batch(self, p, *args, **kwargs):
        hooks.process_batch(p)

    def post_sample(self, p, ps, *args):
        hooks.post_sample(p, ps)

    def postprocess(self, p, processed, *args):
        hooks.postprocess(p, processed)


script_callbacks.on_after_component(page.component_of_page)
script_callbacks.on_ui_settings(options.register)
backends.greet()
