"""Stand-in: the base class of scripts, and the runner that calls the hooks of scripts."""

import importlib.util
import re
import sys
from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import gradio as gr
from modules import errors

AlwaysVisible = object()

ScriptClassData = namedtuple("ScriptClassData", ["script_class", "path", "basedir", "module"])
scripts_data: list[ScriptClassData] = []


class MaskBlendArgs:
    """The argument of the hook `on_mask_blend`. The hook can replace the attribute `blended_latent`.

    For the last blend, after the sampling, `denoiser` is None.
    """

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
    """The argument of the hook `post_sample`. The hook can replace the attribute `samples`."""

    def __init__(self, samples: Any):
        self.samples = samples


class Script:
    """The base class of every script, with some of the webui's hooks. A hook that is not overridden does nothing."""

    name: str | None = None
    filename: str | None = None
    args_from = args_to = 0
    is_img2img = False
    infotext_fields: Sequence[tuple] = ()
    paste_field_names: Sequence[Any] = ()
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

    def postprocess_image(self, p: Any, pp: Any, *args: Any) -> None: ...

    def elem_id(self, item_id: str) -> str:
        """Returns the element id of a component. The id contains the tab and the title of the script."""
        title = re.sub(r"[^a-z_0-9]", "", re.sub(r"\s", "_", self.title().lower()))
        return f"script_{'img2img' if self.is_img2img else 'txt2img'}_{title}_{item_id}"


def load_module(path: Path) -> ModuleType:
    """Loads a file as a module. Like the webui, does not add the module to sys.modules."""
    spec = importlib.util.spec_from_file_location(path.name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_scripts(folder: Path) -> None:
    """Loads the scripts of one extension. While they load, they can import modules from the extension's folder."""
    sys.path.insert(0, str(folder))
    for path in sorted((folder / "scripts").glob("*.py")):
        module = load_module(path)
        found = [entry for entry in vars(module).values() if isinstance(entry, type) and issubclass(entry, Script)]
        scripts_data.extend(ScriptClassData(cls, str(path), str(folder), module) for cls in found)
    sys.path.remove(str(folder))


class ScriptRunner:
    """The scripts of one tab. The values of each script's inputs are a range of a job's list `script_args`."""

    def __init__(self) -> None:
        self.alwayson_scripts: list[Script] = []
        self.selectable_scripts: list[Script] = []
        self.infotext_fields: list[tuple] = []
        self.inputs: list[Any] = [None]

    def initialize_scripts(self, is_img2img: bool) -> None:
        """Creates the scripts of a tab that are always visible. The stand-in ignores all other scripts."""
        self.alwayson_scripts.clear()
        for data in scripts_data:
            script = data.script_class()
            script.filename = data.path
            script.is_img2img = is_img2img
            if script.show(is_img2img) is AlwaysVisible:
                self.alwayson_scripts.append(script)

    def setup_ui(self) -> list[Any]:
        """Builds the panels of all scripts. Returns a list of their input components.

        The first entry of the list is None, in place of the webui's drop-down list of scripts.
        """
        self.inputs, self.infotext_fields = [None], []
        for script in self.alwayson_scripts:
            with gr.Group():
                script.controls = script.ui(script.is_img2img)
            script.name = script.title().lower()
            script.args_from, script.args_to = len(self.inputs), len(self.inputs) + len(script.controls)
            self.inputs += script.controls
            self.infotext_fields += script.infotext_fields
        return self.inputs

    def call(self, hook: str, p: Any, *values: Any, **kwargs: Any) -> None:
        """Calls a hook of every script with the values of the script's inputs.

        If a script raises an error, prints the error and continues with the next script.
        """
        for script in self.alwayson_scripts:
            try:
                args = p.script_args[script.args_from : script.args_to]
                getattr(script, hook)(p, *values, *args, **kwargs)
            except Exception:
                errors.report(f"Error running {hook}: {script.filename}", exc_info=True)

    def after_component(self, component: Any) -> None:
        """Passes a component of the page to the scripts."""
        for script in self.alwayson_scripts:
            script.after_component(component, elem_id=component.elem_id)


scripts_txt2img = ScriptRunner()
scripts_img2img = ScriptRunner()
