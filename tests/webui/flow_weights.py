"""Makes random weights with the layouts of real models, for `flow_checkpoints.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]


def random_weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """Returns a weight of the given shape.

    A matrix or kernel gets normal random values with a standard deviation of 1 / sqrt(fan-in). A vector gets ones if
    its name ends with weight, scale or var, and zeros otherwise.
    """
    if len(shape) >= 2:
        return torch.randn(shape) * math.prod(shape[1:]) ** -0.5
    return torch.ones(shape) if name.endswith(("weight", "scale", "var")) else torch.zeros(shape)


def random_weights(module: nn.Module) -> Weights:
    """Returns random weights with the names and shapes of a module's weights. The module can be on the meta device."""
    return {name: random_weight(name, tuple(value.shape)) for name, value in module.state_dict().items()}


def on_meta(make: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    """Builds a module on the meta device, which allocates no memory for its weights."""
    with torch.device("meta"):
        return make(*args, **kwargs)


@dataclass(frozen=True)
class LanguageModel:
    """The sizes of a text encoder that is a language model."""

    words: int
    """Size of the vocabulary, which the tokenizer determines."""
    width: int = 256
    layers: int = 2
    head: int = 128
    """Width of an attention head. A layer has two heads for queries, and one for keys and values."""
    normalizes_heads: bool = False
    """Whether the encoder normalizes queries and keys, as in Qwen3."""
    has_biases: bool = False
    """Whether queries, keys and values have biases, as in Qwen2.5."""
    norms_feedforward: bool = False
    """Whether there is a norm before and after the feedforward network, as in Gemma 2."""

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """The shapes of the matrices in a layer, by name."""
        heads, groups, inner = 2 * self.head, self.head, 2 * self.width
        return {
            "self_attn.q_proj": (heads, self.width),
            "self_attn.k_proj": (groups, self.width),
            "self_attn.v_proj": (groups, self.width),
            "self_attn.o_proj": (self.width, heads),
            "mlp.gate_proj": (inner, self.width),
            "mlp.up_proj": (inner, self.width),
            "mlp.down_proj": (self.width, inner),
        }

    @property
    def norms(self) -> dict[str, int]:
        """The widths of the norms in a layer, by name."""
        made = {"input_layernorm": self.width, "post_attention_layernorm": self.width}
        if self.normalizes_heads:
            made |= {"self_attn.q_norm": self.head, "self_attn.k_norm": self.head}
        if self.norms_feedforward:
            made |= {"pre_feedforward_layernorm": self.width, "post_feedforward_layernorm": self.width}
        return made

    def weights(self) -> Weights:
        """Returns random matrices, norms of ones and biases of zeros. The names are as in the package transformers."""
        made = {"model.embed_tokens.weight": torch.randn(self.words, self.width)}
        made["model.norm.weight"] = torch.ones(self.width)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            made |= {f"{prefix}{name}.weight": random_weight(name, size) for name, size in self.matrices.items()}
            made |= {f"{prefix}{name}.weight": torch.ones(size) for name, size in self.norms.items()}
            if self.has_biases:
                biased = [name for name in self.matrices if name.endswith(("q_proj", "k_proj", "v_proj"))]
                made |= {f"{prefix}{name}.bias": torch.zeros(self.matrices[name][0]) for name in biased}
        return made


T5_SIZES = {"d_model": 128, "d_ff": 256, "num_heads": 2, "num_layers": 2, "vocab_size": 32128}


def t5() -> Weights:
    """Returns random weights of a thin T5 for the webui's own T5 class."""
    from backend.nn.t5 import IntegratedT5

    kind = {"dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True, "model_type": "t5"}
    return random_weights(on_meta(IntegratedT5, {**T5_SIZES, **kind}))


OPEN_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def as_open_clip(weights: Mapping[str, Tensor]) -> Weights:
    """Renames weights of SDXL's second text encoder from the names in transformers to the names in SDXL checkpoints.

    Also joins the weights of queries, keys and values, as in SDXL checkpoints. The text projection is random.
    """
    text = "text_model."
    made = {
        "positional_embedding": weights[f"{text}embeddings.position_embedding.weight"],
        "token_embedding.weight": weights[f"{text}embeddings.token_embedding.weight"],
        "ln_final.weight": weights[f"{text}final_layer_norm.weight"],
        "ln_final.bias": weights[f"{text}final_layer_norm.bias"],
        "text_projection": torch.randn(1280, 1280) * 0.03,
    }
    for layer in range(32):
        before, after = f"{text}encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            for old, new in {**OPEN_CLIP, "self_attn.out_proj": "attn.out_proj"}.items():
                made[f"{after}{new}.{kind}"] = weights[f"{before}{old}.{kind}"]
            parts = [weights[f"{before}self_attn.{name}_proj.{kind}"] for name in "qkv"]
            made[f"{after}attn.in_proj_{kind}"] = torch.cat(parts)
    return made
