"""Makes checkpoints of flow models with random weights, which Forge Neo loads on a processor.

Run it with the Python of Forge Neo: `NEO/venv/bin/python tests/webui/flow_checkpoints.py NEO KIND OUT.safetensors`.

| KIND | family | latent | size |
|---|---|---|---|
| flux | Flux.1 dev, width 256, one block of each kind | 16 channels | 0.4 GB |
| zimage | Z-Image, one layer of each kind | 16 channels | 1 GB |
| anima | Anima, one block | 16 channels, five axes | 1 GB |
| klein | Flux.2 Klein 4B, one block of each kind | 128 channels, 16 pixels a cell | 2 GB |
| sdxl | rectified-flow SDXL, half as wide; "rectified" must be in OUT's name | 4 channels | 3 GB |

The layouts are the true ones, so that the webui's own detection and classes load them. Its text encoders have one size,
5 to 8 GB in half precision. The extension in `thin_text_encoders` makes the webui read their sizes from the file; copy
it into the folder `extensions` of the data directory. It changes nothing of the webui on disk.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

T5_WIDTH, T5_LAYERS = 128, 2
QWEN_WIDTH, QWEN_LAYERS, QWEN_INNER, QWEN_WORDS = 256, 2, 512, 151936
HEAD = 128
"""Width of an attention head of Qwen3."""

Parts = dict[str, Mapping[str, Tensor]]
"""Weights by the prefix of their keys."""


def random_weights(module: nn.Module) -> dict[str, Tensor]:
    """Returns weights for a module on the meta device: matrices by fan-in, norms one, biases zero."""
    return {name: random_weight(name, tuple(value.shape)) for name, value in module.state_dict().items()}


def random_weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """Returns a weight of the given shape, according to its name."""
    if len(shape) >= 2:
        return torch.randn(shape) * math.prod(shape[1:]) ** -0.5
    return torch.ones(shape) if name.endswith(("weight", "scale")) else torch.zeros(shape)


def on_meta(make: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    """Makes a module without memory for its weights."""
    with torch.device("meta"):
        return make(*args, **kwargs)


class Neo:
    """Parts of checkpoints, in the classes and configurations of Forge Neo."""

    def __init__(self, folder: Path):
        self.configs = folder / "backend" / "huggingface"
        sys.argv = [sys.argv[0], "--cpu"]
        sys.path[:0] = [str(folder), str(folder / "modules_forge" / "packages")]
        os.chdir(folder)

    def vae(self, repository: str, name: str = "IntegratedAutoencoderKL") -> dict[str, Tensor]:
        """Returns the weights of an autoencoder of full size."""
        from backend.nn import vae, wan_vae

        kind = getattr(vae, name, None) or getattr(wan_vae, name)
        config = kind.load_config(str(self.configs / repository / "vae"))
        return random_weights(on_meta(kind.from_config, config))

    def clip(self, repository: str, folder: str) -> dict[str, Tensor]:
        """Returns the weights of a CLIP text model of full size, with the names of transformers."""
        from transformers import CLIPTextConfig, CLIPTextModel

        config = CLIPTextConfig.from_pretrained(str(self.configs / repository / folder))
        weights: dict[str, Tensor] = CLIPTextModel(config).state_dict()
        return weights

    def t5(self) -> dict[str, Tensor]:
        """Returns the weights of a thin T5."""
        from backend.nn.t5 import IntegratedT5

        config = {
            "d_model": T5_WIDTH,
            "d_ff": 2 * T5_WIDTH,
            "num_heads": 2,
            "num_layers": T5_LAYERS,
            "vocab_size": 32128,
        }
        kind = {"dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True, "model_type": "t5"}
        return random_weights(on_meta(IntegratedT5, {**config, **kind}))


def qwen(width: int, layers: int) -> dict[str, Tensor]:
    """Returns the weights of a thin Qwen3 with the names of transformers."""
    heads, groups = 2 * HEAD, HEAD
    matrices = {
        "self_attn.q_proj": (heads, width),
        "self_attn.k_proj": (groups, width),
        "self_attn.v_proj": (groups, width),
        "self_attn.o_proj": (width, heads),
        "mlp.gate_proj": (QWEN_INNER, width),
        "mlp.up_proj": (QWEN_INNER, width),
        "mlp.down_proj": (width, QWEN_INNER),
    }
    norms = {"input_layernorm": width, "post_attention_layernorm": width, "self_attn.q_norm": HEAD}
    norms["self_attn.k_norm"] = HEAD
    made = {"model.embed_tokens.weight": torch.randn(QWEN_WORDS, width), "model.norm.weight": torch.ones(width)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        made |= {f"{prefix}{name}.weight": random_weight(name, shape) for name, shape in matrices.items()}
        made |= {f"{prefix}{name}.weight": torch.ones(size) for name, size in norms.items()}
    return made


def flux(neo: Neo) -> Parts:
    from backend.nn.flux import IntegratedFluxTransformer2DModel

    sizes = {"vec_in_dim": 768, "context_in_dim": T5_WIDTH, "hidden_size": 256, "mlp_ratio": 4.0, "num_heads": 2}
    depth = {"depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2}
    kind = {"in_channels": 16, "out_channels": 16, "qkv_bias": True, "guidance_embed": True}
    network = on_meta(IntegratedFluxTransformer2DModel, **sizes, **depth, **kind)
    return {
        "model.diffusion_model.": random_weights(network),
        "vae.": neo.vae("black-forest-labs/FLUX.1-dev"),
        "text_encoders.clip_l.transformer.": neo.clip("runwayml/stable-diffusion-v1-5", "text_encoder"),
        "text_encoders.t5xxl.": neo.t5(),
    }


def klein(neo: Neo) -> Parts:
    """The width identifies the Klein model. It reads the text encoder's states after the layers 9, 18 and 27."""
    from backend.nn.flux import IntegratedFluxTransformer2DModel

    sizes = {"vec_in_dim": None, "context_in_dim": 3 * QWEN_WIDTH, "hidden_size": 3072, "mlp_ratio": 3.0}
    depth = {"num_heads": 24, "depth": 1, "depth_single_blocks": 1, "axes_dim": [32, 32, 32, 32], "theta": 2000}
    kind = {"in_channels": 128, "out_channels": 128, "patch_size": 1, "qkv_bias": False, "guidance_embed": False}
    more = {"txt_ids_dims": [3], "global_modulation": True, "mlp_silu_act": True, "ops_bias": False}
    references = {"default_ref_method": "index", "ref_index_scale": 10.0}
    network = on_meta(IntegratedFluxTransformer2DModel, **sizes, **depth, **kind, **more, **references)
    return {
        "model.diffusion_model.": random_weights(network),
        "vae.": neo.vae("black-forest-labs/FLUX.2-klein-4B", "AutoencoderKLFlux2"),
        "text_encoders.qwen3_4b.transformer.": qwen(QWEN_WIDTH, 28),
    }


def anima(neo: Neo) -> Parts:
    from backend.nn.anima import Anima, LLMAdapter

    sizes = {"in_channels": 16, "out_channels": 16, "model_channels": 2048, "crossattn_emb_channels": 1024}
    depth = {"num_blocks": 1, "num_heads": 16, "adaln_lora_dim": 256, "concat_padding_mask": True}
    patches = {"patch_spatial": 2, "patch_temporal": 1, "rope_t_extrapolation_ratio": 1.0}
    rope = {"rope_h_extrapolation_ratio": 4.0, "rope_w_extrapolation_ratio": 4.0}
    return {
        "net.": random_weights(on_meta(Anima, **sizes, **depth, **patches, **rope)),
        "net.llm_adapter.": random_weights(on_meta(LLMAdapter)),
        "vae.": neo.vae("circlestone-labs/Anima", "WanVAE"),
        "text_encoders.qwen3_06b.transformer.": qwen(1024, QWEN_LAYERS),
    }


def zimage(neo: Neo) -> Parts:
    from backend.nn.lumina import NextDiT

    sizes = {"dim": 3840, "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512]}
    kind = {"rope_theta": 256.0, "ffn_dim_multiplier": 8.0 / 3.0, "z_image_modulation": True, "time_scale": 1000.0}
    depth = {"n_layers": 1, "n_refiner_layers": 1, "qk_norm": True, "pad_tokens_multiple": 32}
    network = on_meta(NextDiT, patch_size=2, in_channels=16, cap_feat_dim=QWEN_WIDTH, **sizes, **kind, **depth)
    return {
        "model.diffusion_model.": random_weights(network),
        "vae.": neo.vae("black-forest-labs/FLUX.1-dev"),
        "text_encoders.qwen3_4b.transformer.": qwen(QWEN_WIDTH, QWEN_LAYERS),
    }


SDXL = "stabilityai/stable-diffusion-xl-base-1.0"


def sdxl(neo: Neo) -> Parts:
    """The webui recognises SDXL by the depths of its transformers. All levels have the same width here."""
    from backend.nn.unet import IntegratedUNet2DConditionModel

    levels = {"num_res_blocks": [2, 2, 2], "channel_mult": [1, 1, 1], "transformer_depth": [0, 0, 2, 2, 10, 10]}
    depth = {"transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10}
    sizes = {"in_channels": 4, "out_channels": 4, "model_channels": 320, "context_dim": 2048, "num_head_channels": 64}
    kind = {"use_spatial_transformer": True, "use_linear_in_transformer": True, "num_classes": "sequential"}
    network = IntegratedUNet2DConditionModel(**levels, **depth, **sizes, **kind, adm_in_channels=2816)
    return {
        "model.diffusion_model.": random_weights(network),
        "first_stage_model.": neo.vae(SDXL),
        "conditioner.embedders.0.transformer.": neo.clip(SDXL, "text_encoder"),
        "conditioner.embedders.1.model.": as_open_clip(neo.clip(SDXL, "text_encoder_2")),
    }


OPEN_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def as_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights of SDXL's second text encoder with the names in its checkpoints."""
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
            for theirs, ours in {**OPEN_CLIP, "self_attn.out_proj": "attn.out_proj"}.items():
                made[f"{after}{ours}.{kind}"] = weights[f"{before}{theirs}.{kind}"]
            parts = [weights[f"{before}self_attn.{name}_proj.{kind}"] for name in "qkv"]
            made[f"{after}attn.in_proj_{kind}"] = torch.cat(parts)
    return made


KINDS: dict[str, Callable[[Neo], Parts]] = {
    "flux": flux,
    "zimage": zimage,
    "anima": anima,
    "klein": klein,
    "sdxl": sdxl,
}


def main() -> None:
    if len(sys.argv) != 4 or sys.argv[2] not in KINDS:
        sys.exit(__doc__)
    folder, kind, out = Path(sys.argv[1]).resolve(), sys.argv[2], Path(sys.argv[3]).resolve()
    if kind == "sdxl" and "rectified" not in out.name.lower():
        sys.exit('the webui knows a rectified-flow SDXL by "rectified" in its file name alone')
    torch.manual_seed(0)
    neo = Neo(folder)
    from safetensors.torch import save_file

    # half precision is too narrow for Z-Image's activations
    dtype = torch.bfloat16 if kind == "zimage" else torch.float16
    parts = KINDS[kind](neo)
    save_file({prefix + key: value.to(dtype) for prefix, part in parts.items() for key, value in part.items()}, out)
    sys.stdout.write(f"{kind}: {out.stat().st_size >> 20} MB\n")


if __name__ == "__main__":
    main()
