"""Stand-in: the webui's own kinds of components."""

from typing import Any

import gradio as gr


class FormComponent:
    """A component that has no frame of its own in a row."""

    def get_expected_parent(self) -> Any:
        return gr.components.Form


gr.Dropdown.get_expected_parent = FormComponent.get_expected_parent


class ToolButton(FormComponent, gr.Button):
    """A small button with an emoji."""

    def __init__(self, *args: Any, **kwargs: Any):
        classes = kwargs.pop("elem_classes", [])
        self.webui_tooltip = kwargs.pop("tooltip", None)
        super().__init__(*args, elem_classes=["tool", *classes], **kwargs)

    def get_block_name(self) -> str:
        return "button"


class FormRow(FormComponent, gr.Row):
    """A row of controls."""

    def get_block_name(self) -> str:
        return "row"


class InputAccordion(gr.Checkbox):
    """A hidden checkbox, and an accordion that is open while the box is checked. page.js synchronises them."""

    global_index = 0

    def __init__(self, value: bool, **kwargs: Any):
        self.accordion_id = kwargs.get("elem_id")
        if self.accordion_id is None:
            self.accordion_id = f"input-accordion-{InputAccordion.global_index}"
            InputAccordion.global_index += 1
        box = {**kwargs, "elem_id": f"{self.accordion_id}-checkbox", "visible": False}
        super().__init__(value, **box)
        self.change(None, [self], _js=f"(checked) => inputAccordionChecked('{self.accordion_id}', checked)")
        frame = {"label": "Accordion", **kwargs, "elem_id": self.accordion_id, "open": value}
        self.accordion = gr.Accordion(**frame, elem_classes=["input-accordion"])

    def extra(self) -> Any:
        """Returns a container in the header."""
        return gr.Column(elem_id=f"{self.accordion_id}-extra", elem_classes="input-accordion-extra", min_width=0)

    def __enter__(self) -> "InputAccordion":
        self.accordion.__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        self.accordion.__exit__(*args)

    def get_block_name(self) -> str:
        return "checkbox"
