"""Stand-in: the webui's own kinds of components."""

from typing import Any

import gradio as gr


class FormComponent:
    """A component that has a common frame with the components next to it."""

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
    """A row of components in one frame."""

    def get_block_name(self) -> str:
        return "row"


class InputAccordion(gr.Checkbox):
    """A hidden checkbox, and an accordion that is open while the box is checked. page.js connects them."""

    def __init__(self, value: bool, **kwargs: Any):
        elem_id = kwargs.pop("elem_id")
        super().__init__(value, elem_id=f"{elem_id}-checkbox", visible=False, **kwargs)
        self.change(None, [self], _js=f"(checked) => inputAccordionChecked('{elem_id}', checked)")
        self.accordion = gr.Accordion(**kwargs, elem_id=elem_id, open=value, elem_classes=["input-accordion"])

    def __enter__(self) -> "InputAccordion":
        self.accordion.__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        self.accordion.__exit__(*args)

    def get_block_name(self) -> str:
        return "checkbox"
