"""Stand-in: the page with the tabs txt2img and img2img."""

import html
import json
import re
from typing import Any

import gradio as gr
from modules import infotext_utils, jobs, script_callbacks, sd_samplers, shared
from modules.scripts import ScriptRunner, scripts_img2img, scripts_txt2img
from modules.ui_components import FormRow

from trial.collage.content import captions

PROMPT = "a daffodil on moss"
BANNER = (
    "<b>A stand-in for the webui</b>, in which you can try DemoFusion Hires with a very small model. "
    f"The model draws images such as <code>{PROMPT}</code>. The panel below is the real one."
)


class Tab:
    """Builds one tab. `controls` maps the names of a job's parameters to their components."""

    def __init__(self, name: str, runner: ScriptRunner, native: int):
        self.name = name
        self.is_img2img = name == "img2img"
        self.runner = runner
        self.native = native
        self.controls: dict[str, Any] = {}

    def add(self, parameter: str, component: Any) -> None:
        """Stores the component of a parameter, and passes the component to the scripts, as the webui does."""
        self.controls[parameter] = component
        self.runner.after_component(component)

    def _id(self, name: str) -> str:
        return f"{self.name}_{name}"

    def _number(self, parameter: str, label: str, value: float, limits: tuple, elem_id: str = "") -> None:
        low, high, step = limits
        self.add(parameter, gr.Slider(low, high, value, step=step, label=label, elem_id=self._id(elem_id or parameter)))

    def build(self) -> None:
        """Builds the tab."""
        self.runner.initialize_scripts(self.is_img2img)
        with gr.Row():
            with gr.Column(scale=6):
                self.add("prompt", gr.Textbox(PROMPT, label="Prompt", lines=2, elem_id=self._id("prompt")))
                self.unknown = gr.HTML(elem_id=self._id("unknown_words"))
                self.add("negative_prompt", gr.Textbox("", label="Negative prompt", elem_id=self._id("neg_prompt")))
            with gr.Column(scale=1, min_width=160):
                self.generate = gr.Button("Generate", variant="primary", elem_id=self._id("generate"))
                self.interrupt = gr.Button("Interrupt", elem_id=self._id("interrupt"))
                self.paste = gr.Button("↙ Paste parameters", elem_id=f"{self.name}_paste")
        with gr.Row():
            with gr.Column():
                self._settings()
            with gr.Column(elem_id=self._id("results")):
                self.progress = gr.HTML(elem_id=self._id("progress"))
                self.gallery = gr.Gallery(show_label=False, elem_id=self._id("gallery"), preview=True, columns=4,
                                          object_fit="contain", height=560)  # fmt: skip
                self.info = gr.HTML(elem_id=f"html_info_{self.name}")
                self.log = gr.HTML(elem_id=f"html_log_{self.name}", elem_classes="html-log")
        # the webui passes every component that it creates to the scripts
        self.runner.after_component(self.gallery)
        self._connect()

    def _settings(self) -> None:
        if self.is_img2img:
            self.add("init_image", gr.Image(label="Picture", type="pil", height=220, elem_id="img2img_image"))
        with FormRow():
            names = list(sd_samplers.all_samplers_map)
            self.add("sampler_name", gr.Dropdown(names, value="DPM++ 2M", label="Sampling method",
                                                 elem_id=self._id("sampling")))  # fmt: skip
            self._number("steps", "Sampling steps", 20, (1, 150, 1))
        with FormRow():
            self._number("width", "Width", self.native, (64, 2048, 8))
            self._number("height", "Height", self.native, (64, 2048, 8))
        with FormRow():
            self._number("n_iter", "Batch count", 1, (1, 16, 1), "batch_count")
            self._number("batch_size", "Batch size", 1, (1, 8, 1))
        with FormRow():
            self._number("cfg_scale", "CFG scale", 3.0, (1.0, 30.0, 0.5))
            self.add("seed", gr.Number(-1, label="Seed", precision=0, elem_id=self._id("seed")))
        if self.is_img2img:
            self._number("denoising_strength", "Denoising strength", 0.75, (0.0, 1.0, 0.01))
        with gr.Group(elem_id=self._id("script_container")):
            self.script_inputs = self.runner.setup_ui()[1:]
            titles = ["None", *(script.title() for script in self.runner.selectable_scripts)]
            chosen = gr.Dropdown(titles, value="None", type="index", label="Script", elem_id="script_list")
            self.runner.after_component(chosen)

    def _connect(self) -> None:
        names, inputs = list(self.controls), [*self.controls.values(), *self.script_inputs]

        def run(*values: Any) -> Any:
            parameters, args = dict(zip(names, values)), [0, *values[len(names) :]]
            yield from jobs.run(self.runner, self.is_img2img, parameters, args)

        outputs = [self.progress, self.gallery, self.info, self.log]
        self.generate.click(run, inputs, outputs, show_progress=False)
        self.interrupt.click(shared.state.interrupt, [], [], queue=False, show_progress=False)
        fields = [*self._paste_fields(), *self.runner.infotext_fields]

        def paste(text: str) -> list[Any]:
            file = jobs.params_file()
            if "\n" not in text and "Steps:" not in text and file.is_file():
                text = file.read_text(encoding="utf-8")
            return infotext_utils.pasted(fields, text)

        prompt = self.controls["prompt"]
        prompt.change(_unknown_words, [prompt], [self.unknown], show_progress=False, queue=False)
        components = [component for component, _ in fields]
        self.paste.click(paste, [prompt], components, show_progress=False, queue=False)

    def _paste_fields(self) -> list[tuple]:
        keys = {
            "prompt": "Prompt",
            "negative_prompt": "Negative prompt",
            "sampler_name": "Sampler",
            "steps": "Steps",
            "width": "Size-1",
            "height": "Size-2",
            "cfg_scale": "CFG scale",
            "seed": "Seed",
            "denoising_strength": "Denoising strength",
        }
        return [(self.controls[name], key) for name, key in keys.items() if name in self.controls]


def _unknown_words(prompt: str) -> str:
    """Returns a note with the words of the prompt that the model does not know, or "" if it knows all words."""
    words = re.findall(r"[^\W\d_]+", re.sub(r"<[^>]*>", "", prompt.partition("Negative prompt:")[0]).lower())
    subjects, grounds = captions()
    known = {"a", "an", "on", *re.findall(r"\w+", " ".join([*subjects, *grounds]).lower())}
    unknown = [word for word in dict.fromkeys(words) if word not in known]
    return f"The model does not know: <b>{html.escape(', '.join(unknown))}</b>. See the list above." if unknown else ""


def build(scripts_js: list[str], style: str, native: int) -> gr.Blocks:
    """Builds the page, which runs the JavaScript code `scripts_js`. `native` is the default image side in pixels."""
    # gradio's own fonts would be loaded from the network
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    with gr.Blocks(theme, title="DemoFusion Hires: stand-in webui", css=style, analytics_enabled=False) as page:
        gr.HTML(BANNER, elem_id="stand_in")
        subjects, grounds = ("; ".join(f"<i>{name}</i>" for name in names) for names in captions())
        gr.HTML(f"The model can draw these subjects: {subjects}. Backgrounds: {grounds}.", elem_id="words")
        with gr.Tabs(elem_id="tabs"):
            for name, runner in (("txt2img", scripts_txt2img), ("img2img", scripts_img2img)):
                with gr.Tab(name, elem_id=f"tab_{name}"):
                    Tab(name, runner, native).build()
        # the webui stores its settings in this component as JSON, and the extension listens to it; here, it stays empty
        copy = gr.Textbox("{}", elem_id="settings_json", visible=False)
        script_callbacks.call("after_component", copy, elem_id=copy.elem_id)
        add = "const s = document.createElement('script'); s.textContent = text; document.head.appendChild(s);"
        page.load(None, _js=f"() => {{ for (const text of {json.dumps(scripts_js)}) {{ {add} }} }}")
    return page
