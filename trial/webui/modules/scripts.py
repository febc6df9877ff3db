"""Stand-in: the base class of scripts, and the runner that calls their hooks and continues after their errors."""

import contextlib
import re
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from modules import errors, script_loading

AlwaysVisible = object()

ScriptClassData = namedtuple("ScriptClassData", ["script_class", "path", "basedir", "module"])
scripts_data: list[ScriptClassData] = []


class MaskBlendArgs:
    """The values that `on_mask_blend` may replace. The blend after sampling has no denoiser."""

    def __init__(
        self,
        current_latent: Any,
        nmask: Any,
        init_latent: Any,
        mask: Any,
        blended_latent: Any,
        denoiser: Any = None,
        sigma: Any = None,
    ):
        self.current_latent, self.nmask, self.init_latent, self.mask = current_latent, nmask, init_latent, mask
        self.blended_latent = blended_latent
        self.denoiser, self.sigma, self.is_final_blend = denoiser, sigma, denoiser is None


class PostSampleArgs:
    """The values that `post_sample` may replace."""

    def __init__(self, samples: Any):
        self.samples = samples


class PostprocessImageArgs:
    """The values that `postprocess_image` may replace."""

    def __init__(self, image: Any):
        self.image = image


class PostprocessBatchListArgs:
    """The values that `postprocess_batch_list` may replace."""

    def __init__(self, images: list[Any]):
        self.images = images


class Script:
    """The base class of every script. A hook that is not overridden does nothing."""

    name: str | None = None
    filename: str | None = None
    args_from = args_to = 0
    alwayson = False
    is_txt2img = is_img2img = False
    tabname: str | None = None
    create_group = True
    infotext_fields: list[tuple] | None = None
    paste_field_names: list | None = None
    controls: Any = None

    def title(self) -> str:
        raise NotImplementedError

    def ui(self, is_img2img: bool) -> Any: ...

    def show(self, is_img2img: bool) -> Any:
        return True

    def process(self, p: Any, *args: Any) -> None: ...

    def process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None: ...

    def post_sample(self, p: Any, ps: PostSampleArgs, *args: Any) -> None: ...

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None: ...

    def after_component(self, component: Any, **kwargs: Any) -> None: ...

    before_process = process
    before_process_batch = after_extra_networks_activate = process_before_every_sampling = process_batch
    postprocess_batch = process_batch

    def postprocess_batch_list(self, p: Any, pp: PostprocessBatchListArgs, *args: Any, **kwargs: Any) -> None: ...

    def postprocess_image(self, p: Any, pp: PostprocessImageArgs, *args: Any) -> None: ...

    def elem_id(self, item_id: str) -> str:
        """Returns the id of a component, which is unique by title and tab."""
        title = re.sub(r"[^a-z_0-9]", "", re.sub(r"\s", "_", self.title().lower()))
        both_tabs = self.show(True) == self.show(False)
        tab = (("img2img" if self.is_img2img else "txt2img") + "_") if both_tabs else ""
        return f"script_{tab}{title}_{item_id}"


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def load_scripts(folder: Path) -> None:
    """Loads the scripts of one extension. They can import from its folder while they load."""
    with _importable(folder):
        for path in sorted((folder / "scripts").glob("*.py")):
            try:
                module = script_loading.load_module(path)
            except Exception:
                errors.report(f"Error loading script: {path.name}", exc_info=True)
                continue
            found = [entry for entry in vars(module).values() if isinstance(entry, type) and issubclass(entry, Script)]
            scripts_data.extend(ScriptClassData(cls, str(path), str(folder), module) for cls in found)


class ScriptRunner:
    """The scripts of one tab, and their ranges of the arguments."""

    def __init__(self) -> None:
        self.scripts: list[Script] = []
        self.alwayson_scripts: list[Script] = []
        self.selectable_scripts: list[Script] = []
        self.infotext_fields: list[tuple] = []
        self.inputs: list[Any] = [None]

    def initialize_scripts(self, is_img2img: bool) -> None:
        """Creates the scripts of a tab."""
        self.scripts.clear()
        self.alwayson_scripts.clear()
        for data in scripts_data:
            script = data.script_class()
            script.filename = data.path
            script.is_txt2img, script.is_img2img = not is_img2img, is_img2img
            script.tabname = "img2img" if is_img2img else "txt2img"
            if script.show(is_img2img) is AlwaysVisible:
                script.alwayson = True
                self.scripts.append(script)
                self.alwayson_scripts.append(script)

    def setup_ui(self) -> list[Any]:
        """Builds the scripts' panels and returns all their inputs. The first input is the drop-down list of scripts."""
        self.inputs, self.infotext_fields = [None], []
        for script in self.alwayson_scripts:
            with gr.Group() if script.create_group else contextlib.nullcontext():
                self._create_script_ui(script)
        return self.inputs

    def _create_script_ui(self, script: Script) -> None:
        script.args_from = script.args_to = len(self.inputs)
        try:
            controls = script.ui(script.is_img2img)
            script.name = script.title().lower()
        except Exception:
            errors.report(f"Error creating UI for {script.filename}", exc_info=True)
            return
        script.controls = controls
        if controls is None:
            return
        self.inputs += controls
        self.infotext_fields += script.infotext_fields or []
        script.args_to = len(self.inputs)

    def call(self, hook: str, p: Any, *values: Any, **kwargs: Any) -> None:
        """Calls a hook of every script with its own arguments. Reports an error and continues the job."""
        for script in self.alwayson_scripts:
            try:
                args = p.script_args[script.args_from : script.args_to]
                getattr(script, hook)(p, *values, *args, **kwargs)
            except Exception:
                errors.report(f"Error running {hook}: {script.filename}", exc_info=True)

    def after_component(self, component: Any, **kwargs: Any) -> None:
        """Passes a component of the page to the scripts."""
        for script in self.scripts:
            try:
                script.after_component(component, **kwargs)
            except Exception:
                errors.report(f"Error running after_component: {script.filename}", exc_info=True)


scripts_txt2img = ScriptRunner()
scripts_img2img = ScriptRunner()
