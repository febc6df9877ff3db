"""Tokenizes prompts as CLIP does, and encodes them with a small text encoder that has CLIP's parameter names."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, LENGTH = 49408, 77
"""The number of tokens that CLIP knows, and the number of tokens in a tokenized prompt."""
START, END = VOCABULARY - 2, VOCABULARY - 1
START_TEXT, END_TEXT = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class TextConfig:
    """The sizes of the text encoder, with the names of the fields of CLIPTextConfig in the package transformers."""

    hidden_size: int = 64
    intermediate_size: int = 192
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    projection_dim: int = 64
    vocab_size: int = VOCABULARY
    max_position_embeddings: int = LENGTH


@cache
def tokenizer() -> Any:
    """Creates CLIP's tokenizer from one module of the package clip-anytorch.

    Importing the whole package would also import torchvision, which is not installed.
    """
    package = importlib.util.find_spec("clip")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("The package clip-anytorch, which contains CLIP's tokenizer, is not installed.")
    file = Path(package.origin).with_name("simple_tokenizer.py")
    spec = importlib.util.spec_from_file_location("clip_simple_tokenizer", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


def tokenize(prompts: list[str]) -> Tensor:
    """Tokenizes prompts to ids (B, 77): a start token, the tokens of the prompt, and end tokens in all other places.

    Truncates prompts that have more than 75 tokens.
    """
    rows = torch.full((len(prompts), LENGTH), END)
    rows[:, 0] = START
    for row, prompt in zip(rows, prompts, strict=True):
        ids = tokenizer().encode(prompt)[: LENGTH - 2]
        row[1 : 1 + len(ids)] = torch.tensor(ids, dtype=torch.long)
    return rows


class _Layer(nn.Module):
    """A causal transformer layer for x (B, N, C)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        dim, self.heads = config.hidden_size, config.num_attention_heads
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        self.self_attn = nn.ModuleDict({name: nn.Linear(dim, dim) for name in names})
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(dim, config.intermediate_size), "fc2": nn.Linear(config.intermediate_size, dim)}
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer_norm1(x)
        q, k, v = (
            self.self_attn[name](h).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.self_attn["out_proj"](h)
        h = self.mlp["fc1"](self.layer_norm2(x))
        return x + self.mlp["fc2"](h * torch.sigmoid(1.702 * h))


class TextEncoder(nn.Module):
    """CLIP's text model. Encodes ids (B, 77) to the normalised states of the last layer (B, 77, C)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        model = nn.Module()
        model.embeddings, model.encoder = nn.Module(), nn.Module()
        model.embeddings.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        model.embeddings.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        model.encoder.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        model.final_layer_norm = nn.LayerNorm(config.hidden_size)
        self.text_model = model

    def forward(self, ids: Tensor) -> Tensor:
        embeddings = self.text_model.embeddings
        x = embeddings.token_embedding(ids) + embeddings.position_embedding.weight[: ids.shape[1]]
        for layer in self.text_model.encoder.layers:
            x = layer(x)
        return self.text_model.final_layer_norm(x)


def write_clip_folder(folder: Path, config: TextConfig) -> None:
    """Writes the tokenizer and the text encoder's configuration, which a webui needs to load the checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    marks = {"bos_token": START_TEXT, "eos_token": END_TEXT, "unk_token": END_TEXT, "pad_token": END_TEXT}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, **marks}
    model = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_act": "quick_gelu"}
    files = {
        "vocab.json": json.dumps(tokenizer().encoder, ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "\n".join(map(" ".join, tokenizer().bpe_ranks)) + "\n",
        "tokenizer_config.json": json.dumps(settings),
        "special_tokens_map.json": json.dumps(marks),
        "config.json": json.dumps({**model, **asdict(config)}),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
