"""A test extension that makes Forge Neo read the sizes of T5, Qwen3 and some transformers from the weights.

By default the webui reads them from its own configuration files for the models of full size.
"""

import dataclasses
import functools

from backend import loader
from backend.nn.llm import llama

load_component = loader.load_huggingface_component

QWEN_BY_WIDTH = {2560: "Qwen3_4BConfig", 4096: "Qwen3_8BConfig"}
"""The class that the webui chooses by the width in the file."""


class Unchecked(dict):
    """A configuration that hides its numbers from the assertions of the class."""

    def __contains__(self, key):
        return False


def layers(state, prefix):
    """Returns the number of layers whose keys have a prefix."""
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})


def t5_sizes(state):
    block = "transformer.encoder.block."
    vocabulary, width = state["transformer.shared.weight"].shape
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "num_layers": layers(state, block),
        "d_ff": state[f"{block}0.layer.1.DenseReluDense.wi_0.weight"].shape[0],
        "num_heads": state[f"{block}0.layer.0.SelfAttention.relative_attention_bias.weight"].shape[1],
    }


def qwen_sizes(state):
    first = "model.layers.0."
    vocabulary, width = state["model.embed_tokens.weight"].shape
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": layers(state, "model.layers."),
        "intermediate_size": state[f"{first}mlp.gate_proj.weight"].shape[0],
        "num_attention_heads": state[f"{first}self_attn.q_proj.weight"].shape[0] // 128,
        "num_key_value_heads": state[f"{first}self_attn.k_proj.weight"].shape[0] // 128,
    }


@functools.wraps(load_component)
def load(guess, component_name, lib_name, cls_name, repo_path, state_dict):
    read, classes = loader.read_arbitrary_config, {}
    if cls_name == "CosmosTransformer3DModel":
        guess.unet_config["num_blocks"] = layers(state_dict, "blocks.")
    if cls_name in ("ZImageTransformer2DModel", "Lumina2Transformer2DModel"):
        guess.unet_config["n_refiner_layers"] = layers(state_dict, "noise_refiner.")
    try:
        if cls_name == "T5EncoderModel" and "transformer.shared.weight" in state_dict:
            found = t5_sizes(state_dict)
            loader.read_arbitrary_config = lambda path: {**read(path), **found}
        elif cls_name.startswith("Qwen3") and cls_name != "Qwen3VLModel" and "model.norm.weight" in state_dict:
            found = qwen_sizes(state_dict)
            name = QWEN_BY_WIDTH.get(read(f"{repo_path}/{component_name}")["hidden_size"], "Qwen3_06BConfig")
            config = classes[name] = getattr(llama, name)
            setattr(llama, name, lambda: dataclasses.replace(config(), **found))
            loader.read_arbitrary_config = lambda path: Unchecked(read(path))
        return load_component(guess, component_name, lib_name, cls_name, repo_path, state_dict)
    finally:
        loader.read_arbitrary_config = read
        for name, config in classes.items():
            setattr(llama, name, config)


if not hasattr(load_component, "__wrapped__"):
    loader.load_huggingface_component = load
