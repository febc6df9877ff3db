"""A test extension with which Forge and Forge Neo read the sizes of a model's parts from the checkpoint.

The parts are text encoders, transformers and autoencoders. By default, these webuis read the sizes of the full models
from their own configuration files and tables. The test extension changes no file of the webui.

Three more changes shorten the tests. The prompts of Flux.2 Klein are padded to fewer tokens. Each transformer in a thin
SDXL has only one block. Text encoders lose the part that reads reference images.
"""

import contextlib
import dataclasses
import functools

import torch
from backend import loader
from diffusers.configuration_utils import ConfigMixin

try:
    from backend.nn.llm import llama
except ImportError:
    # Forge has no language models as text encoders
    llama = None

try:
    from backend.text_processing.klein_engine import KleinTextProcessingEngine
except ImportError:
    KleinTextProcessingEngine = None

load_component = loader.load_huggingface_component

LANGUAGE_MODELS = ("Qwen3Model", "Qwen3ForCausalLM", "Qwen3VLModel", "Qwen2_5_VL", "Gemma2Model", "Mistral3Model")
"""Prefixes of the class names of text encoders whose configurations are dataclasses (backend/nn/llm/llama.py)."""

HEAD = 128
"""Width of an attention head in all transformers of this file."""

KLEIN_TOKENS = 64
"""The number of tokens to which Klein's prompts are padded, instead of 512.

For comparison, an image of 64x64 pixels has 16 tokens.
"""


class Unchecked(dict):
    """A configuration that seems to contain no key.

    The webui's classes would otherwise assert that the sizes in the configuration are the sizes of the full model.
    """

    def __contains__(self, key):
        return False


class NoVision(torch.nn.Module):
    """Replaces the part of a text encoder that reads reference images. It has no weights and returns zeros."""

    def __init__(self, width, layers=0):
        super().__init__()
        self.width, self.layers = width, layers

    def forward(self, patches, grid):
        """Returns tokens (N // 4, width) of zeros for patches (N, C).

        If `layers` is not 0, also returns a list of `layers` such tensors, as Qwen3-VL does.
        """
        tokens = patches.new_zeros(len(patches) // 4, self.width)
        return (tokens, [tokens] * self.layers) if self.layers else tokens


def layers(state, prefix):
    """Returns the number of layers in a state dict. `prefix` is the part of the keys before the number of the layer."""
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


def language_model_sizes(state, config):
    """Returns the sizes in a state dict, by their names in the webui's dataclass for the configuration."""
    first = "model.layers.0."
    vocabulary, width = state["model.embed_tokens.weight"].shape
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": layers(state, "model.layers."),
        "intermediate_size": state[f"{first}mlp.gate_proj.weight"].shape[0],
        "num_attention_heads": state[f"{first}self_attn.q_proj.weight"].shape[0] // config.head_dim,
        "num_key_value_heads": state[f"{first}self_attn.k_proj.weight"].shape[0] // config.head_dim,
    }


def flux_sizes(state):
    """Returns the sizes of a Flux transformer.

    These sizes are constants in Forge. Forge Neo itself reads them from the weights.
    """
    width, context = state["txt_in.weight"].shape
    return {
        "hidden_size": width,
        "num_heads": width // HEAD,
        "context_in_dim": context,
        "depth": layers(state, "double_blocks."),
        "depth_single_blocks": layers(state, "single_blocks."),
    }


def chroma_sizes(state):
    guide = "distilled_guidance_layer."
    out, inner = state[f"{guide}out_proj.weight"].shape
    count = layers(state, f"{guide}layers.")
    neo = {"out_dim": out, "hidden_dim": inner, "n_layers": count}
    return {**flux_sizes(state), **neo, **{f"guidance_{name}": value for name, value in neo.items()}}


def qwen_image_sizes(state):
    return {
        "num_attention_heads": state["img_in.weight"].shape[0] // HEAD,
        "joint_attention_dim": state["txt_norm.weight"].shape[0],
    }


def ernie_sizes(state):
    width, context = state["text_proj.weight"].shape
    return {
        "hidden_size": width,
        "num_attention_heads": width // HEAD,
        "num_layers": layers(state, "layers."),
        "ffn_hidden_size": state["layers.0.mlp.gate_proj.weight"].shape[0],
        "text_in_dim": context,
    }


def lumina_sizes(state):
    inner, width = state["layers.0.feed_forward.w1.weight"].shape
    return {"n_refiner_layers": layers(state, "noise_refiner."), "ffn_dim_multiplier": inner / width}


def klein_sizes(state):
    width, joined = state["single_blocks.0.linear2.weight"].shape
    return {"mlp_ratio": (joined - width) / width}


def unet_sizes(state):
    """Returns the depths of the transformers of a thin SDXL, or an empty dict for any other UNet.

    In a thin SDXL, the middle block has as many channels as the first layer. The checkpoint contains all blocks,
    because the webui recognizes SDXL by their number. The model gets only the first block of each transformer.
    """
    middle = state["middle_block.0.in_layers.2.weight"].shape[0]
    if "label_emb.0.0.weight" not in state or middle != state["input_blocks.0.0.weight"].shape[0]:
        return {}
    depths = {"transformer_depth": [0, 0, 1, 1, 1, 1], "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1]}
    return {**depths, "transformer_depth_middle": 1}


def vae_sizes(state):
    """Returns the widths in a state dict of an autoencoder, by their names in its configuration."""
    if "encoder.conv1.weight" in state:
        return {"base_dim": state["encoder.conv1.weight"].shape[0]}
    down = "encoder.down."
    widths = [state[f"{down}{level}.block.0.conv1.weight"].shape[0] for level in range(layers(state, down))]
    return {"block_out_channels": widths}


TRANSFORMERS = {
    "UNet2DConditionModel": unet_sizes,
    "FluxTransformer2DModel": flux_sizes,
    "Flux2Transformer2DModel": klein_sizes,
    "ChromaTransformer2DModel": chroma_sizes,
    "Lumina2Transformer2DModel": lumina_sizes,
    "ZImageTransformer2DModel": lumina_sizes,
    "CosmosTransformer3DModel": lambda state: {"num_blocks": layers(state, "blocks.")},
    "QwenImageTransformer2DModel": qwen_image_sizes,
    "ErnieImageTransformer2DModel": ernie_sizes,
}
"""Maps the class of a transformer to the function that reads the sizes from its state dict."""
OTHER_NAMES_IN_FORGE = ("FluxTransformer2DModel", "ChromaTransformer2DModel")
"""Transformers whose sizes have other names in Forge than in Forge Neo.

For these, `load` leaves out the names that the webui's configuration of the model does not contain.
"""


@contextlib.contextmanager
def replaced(owner, **values):
    """Returns a context in which attributes of `owner` have other values."""
    # vars, because getattr would return a class method that is bound to the owner
    before = {name: vars(owner)[name] for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextlib.contextmanager
def thin_language_model(state):
    """Returns a context in which the webui builds language models in the sizes of `state` and without vision."""

    def thin(config):
        return lambda: dataclasses.replace(config(), **language_model_sizes(state, config()))

    def qwen2_without_vision(hidden_size, output_hidden_size):
        return NoVision(output_hidden_size)

    names = [name for name in vars(llama) if name.endswith(("Config", "_Config"))]
    read = loader.read_arbitrary_config
    vision = {"Qwen3VLVisionModel": lambda config: NoVision(config["out_hidden_size"], layers=3)}
    with contextlib.ExitStack() as stack:
        stack.enter_context(replaced(llama, **{name: thin(getattr(llama, name)) for name in names}, **vision))
        stack.enter_context(replaced(llama.qwen_vl, Qwen2VLVisionTransformer=qwen2_without_vision))
        stack.enter_context(replaced(loader, read_arbitrary_config=lambda path: Unchecked(read(path))))
        yield


@contextlib.contextmanager
def thin_autoencoder(state):
    """Returns a context in which the webui builds autoencoders in the widths of `state`."""
    own = vars(ConfigMixin)["load_config"].__func__

    def load_config(cls, *args, **kwargs):
        return {**own(cls, *args, **kwargs), **vae_sizes(state)}

    with replaced(ConfigMixin, load_config=classmethod(load_config)):
        yield


@functools.wraps(load_component)
def load(guess, component_name, lib_name, cls_name, repo_path, state_dict):
    """Replaces the webui's function that builds a part of a model. The part gets the sizes of `state_dict`."""
    with contextlib.ExitStack() as stack:
        if cls_name in TRANSFORMERS:
            sizes, known = TRANSFORMERS[cls_name](state_dict), guess.unet_config
            known.update(
                {name: value for name, value in sizes.items() if name in known or cls_name not in OTHER_NAMES_IN_FORGE}
            )
        elif cls_name == "T5EncoderModel" and "transformer.shared.weight" in state_dict:
            read, found = loader.read_arbitrary_config, t5_sizes(state_dict)
            stack.enter_context(replaced(loader, read_arbitrary_config=lambda path: {**read(path), **found}))
        elif cls_name.startswith(LANGUAGE_MODELS) and "model.embed_tokens.weight" in state_dict:
            stack.enter_context(thin_language_model(state_dict))
        elif cls_name.startswith("AutoencoderKL") and state_dict:
            stack.enter_context(thin_autoencoder(state_dict))
        return load_component(guess, component_name, lib_name, cls_name, repo_path, state_dict)


def with_short_prompts(initialize):
    """Wraps the initializer of Klein's text engine, which then pads prompts to KLEIN_TOKENS."""

    @functools.wraps(initialize)
    def wrapped(self, *args, **kwargs):
        initialize(self, *args, **kwargs)
        self.min_length = KLEIN_TOKENS

    return wrapped


load.demofusion_test = True

if not hasattr(load_component, "demofusion_test"):
    loader.load_huggingface_component = load
    if KleinTextProcessingEngine is not None:
        KleinTextProcessingEngine.__init__ = with_short_prompts(KleinTextProcessingEngine.__init__)
