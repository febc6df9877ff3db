"""Stand-in: converts an image's parameters to an infotext and back."""

import json
import re
from collections.abc import Callable
from typing import Any

import gradio as gr

PARAMETER = re.compile(r'\s*(?P<key>\w[\w \-/]+):\s*(?P<value>"(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
SIZE = re.compile(r"^(\d+)x(\d+)$")


def quote(text: Any) -> Any:
    """Quotes a value that contains a comma, a colon or a line break."""
    if "," not in str(text) and "\n" not in str(text) and ":" not in str(text):
        return text
    return json.dumps(text, ensure_ascii=False)


def unquote(text: str) -> Any:
    """Removes the quotes that `quote` adds. Returns other texts unchanged."""
    try:
        return json.loads(text) if text[:1] == '"' and text[-1:] == '"' else text
    except json.JSONDecodeError:
        return text


def parse_generation_parameters(x: str) -> dict[str, Any]:
    """Parses an infotext into prompts and parameters. All values in the result are texts.

    A size becomes two parameters: "Size: 64x96" becomes "Size-1: 64" and "Size-2: 96".
    """
    *lines, last = x.strip().split("\n")
    if len(PARAMETER.findall(last)) < 3:
        lines, last = [*lines, last], ""
    prompts: dict[str, list[str]] = {"Prompt": [], "Negative prompt": []}
    current = "Prompt"
    for line in lines:
        if line.startswith("Negative prompt:"):
            current, line = "Negative prompt", line.removeprefix("Negative prompt:")
        prompts[current].append(line.strip())
    params: dict[str, Any] = {key: "\n".join(text) for key, text in prompts.items()}
    for key, value in PARAMETER.findall(last):
        value = unquote(value.strip())
        size = SIZE.match(str(value))
        if size:
            params[f"{key}-1"], params[f"{key}-2"] = size.groups()
        else:
            params[key] = value
    return params


def create_override_settings_dict(text_pairs: list[str]) -> dict[str, Any]:
    """Parses a list of texts such as "Tiling: True" into settings. Ignores all settings except *Tiling*."""
    found = [pair == "Tiling: True" for pair in text_pairs if pair.startswith("Tiling:")]
    return {"tiling": found[-1]} if found else {}


def pasted(fields: list[tuple[Any, Any]], text: str) -> list[Any]:
    """Returns a gradio update for every field, with the field's value in an infotext.

    A field is a pair of a component and a source of its value. The source is either the name of a parameter, or a
    function that computes the value from all parameters.
    """
    params = parse_generation_parameters(text)
    return [_update(component, target, params) for component, target in fields]


def _update(component: Any, target: str | Callable, params: dict[str, Any]) -> Any:
    value = target(params) if callable(target) else params.get(target)
    if value is None:
        return gr.update()
    kind = type(component.value)
    try:
        return gr.update(value=float(value) if kind is int else kind(value))
    except (TypeError, ValueError):
        return gr.update()
