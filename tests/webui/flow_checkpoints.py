"""Makes checkpoints of flow models with random weights that Forge Neo and Forge can load on a CPU.

Run this program with the Python of the webui in the folder WEBUI:

    WEBUI/venv/bin/python tests/webui/flow_checkpoints.py WEBUI FOLDER [KIND ...]

The tests of flow models run this program if their folder of checkpoints is empty. Without a KIND, the program makes
every kind that the webui supports.

| KIND | family | size |
|---|---|---|
| rectified-sdxl | rectified-flow SDXL, all levels 320 wide; the webui needs "rectified" in the file name | 2.2 GB |
| zimage | Z-Image, one layer of each kind | 0.5 GB |
| schnell, flux | Flux.1, width 256, one block of each kind | 0.3 GB |
| chroma | Chroma, width 256, one block of each kind | 0.02 GB |
| lumina | Lumina 2, one layer of each kind | 0.3 GB |
| qwen | Qwen-Image, width 256, one block | 0.1 GB |
| anima | Anima, one block | 0.8 GB |
| klein | Flux.2 Klein 4B, one block of each kind | 0.7 GB |
| ernie | Ernie-Image, width 256, one layer | 0.2 GB |
| krea | Krea 2, width 256, one block | 0.2 GB |
| mugen | Mugen, all levels 320 wide | 2.2 GB |
| sd3 | Stable Diffusion 3, width 256, four blocks; in Forge only | 1.7 GB |

The checkpoints have the layouts of the real models, so the webui detects and loads them with its own classes. By
default, the webui builds text encoders and some transformers in full size, up to 20 GB in half precision. With the test
extension in `thin_text_encoders`, the webui reads their widths and numbers of layers from the checkpoint. The test
extension changes no file of the webui.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from flow_weights import T5_SIZES, LanguageModel, Weights, as_open_clip, on_meta, random_weights, t5
from torch import Tensor

Parts = dict[str, Weights]
"""The weights of each part of a checkpoint, by the prefix of their keys."""

NETWORK = "model.diffusion_model."
WIDTH = 256
"""Width of the transformers for which the webui accepts any width. They have two heads, except SD3, which has four."""
QWEN_WORDS = 151936
"""Size of the vocabulary of Qwen3."""
KREA_WIDTH = 320
"""Width of Krea's text encoder. The transformer divides this width into 20 heads."""
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
SD3 = "stabilityai/stable-diffusion-3-medium-diffusers"
CLIPS = (("l", ""), ("g", "_2"))
FLUX_VAE = "black-forest-labs/FLUX.1-dev"
THIN_VAE = {"block_out_channels": [32, 32, 64, 64], "base_dim": 16}
"""Widths of the layers of autoencoders: `base_dim` for WanVAE, and `block_out_channels` for all others.

Wider autoencoders would take most of a test's time.
"""
THIN_MLP = 256
"""Width of the feedforward layers in the transformers whose own width must be that of the real model."""


class PartMaker:
    """Makes parts of checkpoints with the classes and configurations of the webui in `folder`."""

    def __init__(self, folder: Path):
        self.is_neo = (folder / "backend" / "nn" / "llm").is_dir()
        self.configs = folder / "backend" / "huggingface"
        packages = (
            ["modules_forge/packages"] if self.is_neo else ["packages_3rdparty", "repositories/huggingface_guess"]
        )
        sys.argv = [sys.argv[0], "--cpu" if self.is_neo else "--always-cpu"]
        sys.path[:0] = [str(folder), *(str(folder / name) for name in packages)]
        os.chdir(folder)

    def vae(self, repository: str, name: str = "IntegratedAutoencoderKL") -> Weights:
        """Returns random weights of an autoencoder with the configuration in `repository`, but with THIN_VAE.

        `name` is the name of its class in the webui.
        """
        from backend.nn import vae

        kind = getattr(vae, name, None)
        if kind is None:
            from backend.nn import wan_vae

            kind = getattr(wan_vae, name)
        config = kind.load_config(str(self.configs / repository / "vae"))
        thin = {name: value for name, value in THIN_VAE.items() if name in config}
        return random_weights(on_meta(kind.from_config, {**config, **thin}))

    def clip(self, repository: str, folder: str) -> Weights:
        """Returns random weights of a CLIP text model of full size, with the names in the package transformers."""
        from transformers import CLIPTextConfig, CLIPTextModel

        config = CLIPTextConfig.from_pretrained(str(self.configs / repository / folder))
        weights: Weights = CLIPTextModel(config).state_dict()
        return weights

    def flux_network(self, guidance: bool) -> Weights:
        from backend.nn.flux import IntegratedFluxTransformer2DModel

        sizes = {"vec_in_dim": 768, "context_in_dim": T5_SIZES["d_model"], "hidden_size": WIDTH, "num_heads": 2}
        depth = {"mlp_ratio": 4.0, "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56], "theta": 10000}
        kind = {"in_channels": 16, "qkv_bias": True, "guidance_embed": guidance}
        more = {"out_channels": 16, "patch_size": 2} if self.is_neo else {}
        return random_weights(on_meta(IntegratedFluxTransformer2DModel, **sizes, **depth, **kind, **more))

    def chroma_network(self) -> Weights:
        from backend.nn.chroma import IntegratedChromaTransformer2DModel

        sizes = {"vec_in_dim": None, "context_in_dim": T5_SIZES["d_model"], "hidden_size": WIDTH, "num_heads": 2}
        depth = {"mlp_ratio": 4.0, "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56], "theta": 10000}
        neo = {"in_channels": 64, "out_channels": 64, "patch_size": 2, "txt_ids_dims": [], "in_dim": 64}
        guide = {"out_dim": WIDTH, "hidden_dim": 2 * WIDTH, "n_layers": 5}
        forge = {"in_channels": 16, **{f"guidance_{name}": value for name, value in guide.items()}}
        more = {**neo, **guide} if self.is_neo else forge
        return random_weights(on_meta(IntegratedChromaTransformer2DModel, **sizes, **depth, qkv_bias=True, **more))


def flux(maker: PartMaker, guidance: bool = True) -> Parts:
    return {
        NETWORK: maker.flux_network(guidance),
        "vae.": maker.vae(FLUX_VAE),
        "text_encoders.clip_l.transformer.": maker.clip("runwayml/stable-diffusion-v1-5", "text_encoder"),
        "text_encoders.t5xxl.": t5(),
    }


def schnell(maker: PartMaker) -> Parts:
    return flux(maker, guidance=False)


def chroma(maker: PartMaker) -> Parts:
    return {NETWORK: maker.chroma_network(), "vae.": maker.vae(FLUX_VAE), "text_encoders.t5xxl.": t5()}


def klein(maker: PartMaker) -> Parts:
    """Makes Flux.2 Klein 4B, which the webui recognizes by the width of the transformer.

    The transformer reads the hidden states of the text encoder after layers 9, 18 and 27, so the text encoder must have
    at least 27 layers.
    """
    from backend.nn.flux import IntegratedFluxTransformer2DModel

    sizes = {"vec_in_dim": None, "context_in_dim": 3 * WIDTH, "hidden_size": 3072}
    depth = {"num_heads": 24, "depth": 1, "depth_single_blocks": 1, "mlp_ratio": THIN_MLP / 3072}
    rope = {"axes_dim": [32, 32, 32, 32], "theta": 2000}
    kind = {"in_channels": 128, "out_channels": 128, "patch_size": 1, "qkv_bias": False, "guidance_embed": False}
    more = {"txt_ids_dims": [3], "global_modulation": True, "mlp_silu_act": True, "ops_bias": False}
    references = {"default_ref_method": "index", "ref_index_scale": 10.0}
    network = on_meta(IntegratedFluxTransformer2DModel, **sizes, **depth, **rope, **kind, **more, **references)
    return {
        NETWORK: random_weights(network),
        "vae.": maker.vae("black-forest-labs/FLUX.2-klein-4B", "AutoencoderKLFlux2"),
        "text_encoders.qwen3_4b.transformer.": LanguageModel(QWEN_WORDS, layers=28, normalizes_heads=True).weights(),
    }


def ernie(maker: PartMaker) -> Parts:
    from backend.nn.ernie import ErnieImageModel

    sizes = {"hidden_size": WIDTH, "num_attention_heads": 2, "num_layers": 1, "ffn_hidden_size": 2 * WIDTH}
    return {
        NETWORK: random_weights(on_meta(ErnieImageModel, **sizes, text_in_dim=2 * WIDTH)),
        "vae.": maker.vae("baidu/ERNIE-Image", "AutoencoderKLFlux2"),
        "text_encoders.ministral3_3b.transformer.": LanguageModel(131072, width=2 * WIDTH, layers=3).weights(),
    }


def anima(maker: PartMaker) -> Parts:
    from backend.nn.anima import Anima, LLMAdapter

    sizes = {"in_channels": 16, "out_channels": 16, "model_channels": 2048, "crossattn_emb_channels": 1024}
    depth = {"num_blocks": 1, "num_heads": 16, "adaln_lora_dim": 256, "concat_padding_mask": True}
    patches = {"patch_spatial": 2, "patch_temporal": 1, "rope_t_extrapolation_ratio": 1.0}
    rope = {"rope_h_extrapolation_ratio": 4.0, "rope_w_extrapolation_ratio": 4.0}
    text = LanguageModel(QWEN_WORDS, width=1024, normalizes_heads=True)
    return {
        "net.": random_weights(on_meta(Anima, **sizes, **depth, **patches, **rope)),
        "net.llm_adapter.": random_weights(on_meta(LLMAdapter)),
        "vae.": maker.vae("circlestone-labs/Anima", "WanVAE"),
        "text_encoders.qwen3_06b.transformer.": text.weights(),
    }


def qwen(maker: PartMaker) -> Parts:
    from backend.nn.qwen import QwenImageTransformer2DModel

    sizes = {"num_layers": 1, "num_attention_heads": 2, "joint_attention_dim": WIDTH}
    return {
        NETWORK: random_weights(on_meta(QwenImageTransformer2DModel, **sizes)),
        "vae.": maker.vae("Qwen/Qwen-Image", "WanVAE"),
        "text_encoders.qwen25_7b.": LanguageModel(152064, has_biases=True).weights(),
    }


def krea(maker: PartMaker) -> Parts:
    """Makes Krea 2.

    The transformer reads the hidden states of the text encoder after twelve of its layers. The last of these is layer
    35, so the text encoder must have at least 35 layers.
    """
    from backend.nn.krea import SingleStreamDiT

    sizes = {"features": WIDTH, "txtdim": KREA_WIDTH, "heads": 2, "kvheads": 1, "layers": 1}
    text = LanguageModel(QWEN_WORDS, width=KREA_WIDTH, layers=36, normalizes_heads=True)
    return {
        NETWORK: random_weights(on_meta(SingleStreamDiT, **sizes)),
        "vae.": maker.vae("krea/Krea-2-Raw", "WanVAE"),
        "text_encoders.qwen3vl_4b.transformer.": text.weights(),
    }


def next_dit(**kwargs: Any) -> Weights:
    from backend.nn.lumina import NextDiT

    depth = {"n_layers": 1, "n_refiner_layers": 1, "qk_norm": True, "cap_feat_dim": WIDTH}
    inner = {"ffn_dim_multiplier": THIN_MLP / kwargs["dim"]}
    return random_weights(on_meta(NextDiT, patch_size=2, in_channels=16, **depth, **inner, **kwargs))


def zimage(maker: PartMaker) -> Parts:
    sizes = {"dim": 3840, "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512]}
    kind = {"rope_theta": 256.0, "z_image_modulation": True, "time_scale": 1000.0}
    return {
        NETWORK: next_dit(**sizes, **kind, pad_tokens_multiple=32),
        "vae.": maker.vae(FLUX_VAE),
        "text_encoders.qwen3_4b.transformer.": LanguageModel(QWEN_WORDS, normalizes_heads=True).weights(),
    }


def lumina(maker: PartMaker) -> Parts:
    sizes = {"dim": 2304, "n_heads": 24, "n_kv_heads": 8, "axes_dims": [32, 32, 32], "axes_lens": [300, 512, 512]}
    return {
        NETWORK: next_dit(**sizes, rope_theta=10000.0),
        "vae.": maker.vae("neta-art/Neta-Lumina"),
        "text_encoders.gemma2_2b.transformer.": LanguageModel(256000, head=256, norms_feedforward=True).weights(),
    }


def sdxl(maker: PartMaker, channels: int = 4) -> Parts:
    """Makes SDXL with the same width at all levels. The webui recognizes SDXL by the depths of its transformers."""
    from backend.nn.unet import IntegratedUNet2DConditionModel

    levels = {"num_res_blocks": [2, 2, 2], "channel_mult": [1, 1, 1], "transformer_depth": [0, 0, 2, 2, 10, 10]}
    depth = {"transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10}
    sizes = {"in_channels": channels, "out_channels": channels, "model_channels": 320, "num_head_channels": 64}
    kind = {"use_spatial_transformer": True, "use_linear_in_transformer": True, "num_classes": "sequential"}
    more = {"context_dim": 2048, "adm_in_channels": 2816}
    return {
        NETWORK: random_weights(on_meta(IntegratedUNet2DConditionModel, **levels, **depth, **sizes, **kind, **more)),
        "first_stage_model.": maker.vae(SDXL),
        "conditioner.embedders.0.transformer.": maker.clip(SDXL, "text_encoder"),
        "conditioner.embedders.1.model.": as_open_clip(maker.clip(SDXL, "text_encoder_2")),
    }


def mugen(maker: PartMaker) -> Parts:
    parts = sdxl(maker, channels=32)
    return {**parts, "first_stage_model.": maker.vae("CabalResearch/Mugen", "AutoencoderKLFlux2")}


def sd3(maker: PartMaker) -> Parts:
    """Makes Stable Diffusion 3, which Forge Neo does not support.

    Forge pads the text embeddings to a width of 4096, and uses T5 only if a setting enables it.
    """
    from backend.nn.mmditx import MMDiTX

    text = {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": WIDTH}}
    sizes = {"input_size": None, "patch_size": 2, "in_channels": 16, "depth": WIDTH // 64, "adm_in_channels": 2048}
    places = {"pos_embed_max_size": 192, "num_patches": 192**2}
    texts = {
        f"text_encoders.clip_{name}.transformer.": maker.clip(SD3, f"text_encoder{folder}") for name, folder in CLIPS
    }
    projections = {
        prefix + "text_projection.": {"weight": torch.eye(len(part["text_model.final_layer_norm.weight"]))}
        for prefix, part in texts.items()
    }
    return {
        NETWORK: random_weights(on_meta(MMDiTX, **sizes, **places, context_embedder_config=text)),
        "first_stage_model.": maker.vae(SD3),
        **texts,
        **projections,
        "text_encoders.t5xxl.": t5(),
    }


IN_BOTH = {"flux": flux, "schnell": schnell, "chroma": chroma}
IN_FORGE = {**IN_BOTH, "sd3": sd3}
KINDS: Mapping[str, Callable[[PartMaker], Parts]] = {
    "rectified-sdxl": sdxl,
    "zimage": zimage,
    **IN_BOTH,
    "lumina": lumina,
    "qwen": qwen,
    "anima": anima,
    "klein": klein,
    "ernie": ernie,
    "krea": krea,
    "mugen": mugen,
    "sd3": sd3,
}

SCALES = re.compile(r"((query|key)_norm|distilled_guidance_layer\.norms\.\d+)\.weight$")
"""The names of norms whose weights are called `scale` in the checkpoints of Flux and Chroma."""


def checkpoint(kind: str, maker: PartMaker) -> dict[str, Tensor]:
    """Returns the weights of a checkpoint of this kind, by their names in the file."""
    # bfloat16 for the two models whose activations exceed the range of float16
    dtype = torch.bfloat16 if kind in ("zimage", "lumina") else torch.float16
    made = {prefix + key: value for prefix, part in KINDS[kind](maker).items() for key, value in part.items()}
    return {SCALES.sub(r"\1.scale", key): value.detach().to(dtype).contiguous() for key, value in made.items()}


def main() -> None:
    if len(sys.argv) < 3 or not set(sys.argv[3:]) <= set(KINDS):
        sys.exit(__doc__)
    folder, out, kinds = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), sys.argv[3:]
    maker = PartMaker(folder)
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    for kind in kinds or ([kind for kind in KINDS if kind != "sd3"] if maker.is_neo else IN_FORGE):
        torch.manual_seed(0)
        path = out / f"{kind}.safetensors"
        save_file(checkpoint(kind, maker), path)
        sys.stdout.write(f"{kind}: {path.stat().st_size >> 20} MB\n")


if __name__ == "__main__":
    main()
