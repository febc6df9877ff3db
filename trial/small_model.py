"""Loads a small checkpoint with the layout of Stable Diffusion 1 for inference, without a webui.

Example:

model = load()
context = model.encode_prompts(["a bear on grass"])
eps = model.unet(x, t, context)
"""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from trial import packing
from trial.autoencoder import Autoencoder, AutoencoderConfig
from trial.text import TextConfig, TextEncoder, tokenize
from trial.unet import UNet, UNetConfig

CHECKPOINT = Path(__file__).parent / "checkpoint" / "demofusion-collage.safetensors"
"""The bundled model, packed with 8 bits per weight."""
LORA = CHECKPOINT.with_name("demofusion-collage-lcm.safetensors")
"""The packed LoRA for few steps. With this LoRA, the bundled model needs 4 to 8 steps of LCM, and CFG scale 1."""
GUIDANCE = 3.0
"""The CFG scale for the bundled model without the LoRA."""
UNET_PREFIX, VAE_PREFIX, TEXT_PREFIX = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
POSITIONS = TEXT_PREFIX + "text_model.embeddings.position_ids"


class SmallModel(nn.Module):
    """The UNet, the autoencoder and the text encoder.

    `unet(x, t, context)` predicts the noise in x (B, 4, H, W) at timesteps t (B,) in 0..999, with context (B, 77, C).
    x is a latent of the autoencoder, multiplied by `scale_factor`, with noise. `alphas_cumprod` has the shape (1000,).
    """

    def __init__(self, unet: UNet, vae: Autoencoder, text: TextEncoder, scale_factor: float, alphas: Tensor) -> None:
        super().__init__()
        self.unet, self.vae, self.text, self.scale_factor = unet, vae, text, scale_factor
        self.register_buffer("alphas_cumprod", alphas)

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """Encodes prompts to the context of the UNet, (B, 77, C)."""
        return self.text(tokenize(prompts))

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Encodes images (B, 3, H, W) in -1..1 to scaled latents (B, 4, H / 8, W / 8)."""
        return self.vae.encode(image) * self.scale_factor

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Decodes scaled latents (B, 4, h, w) to images (B, 3, 8 h, 8 w) in -1..1."""
        return self.vae.decode(latent / self.scale_factor).clamp(-1.0, 1.0)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Returns the tensors except POSITIONS whose names begin with `prefix`, in float32 and without the prefix."""
    return {k[len(prefix) :]: v.float() for k, v in tensors.items() if k.startswith(prefix) and k != POSITIONS}


def _chosen(params: dict, kind: type):
    """Creates a dataclass `kind` from a section of the .yaml file. Ignores parameters that `kind` does not have."""
    known = {name: params[name] for name in kind.__dataclass_fields__ if name in params}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in known.items()})


def text_config(tensors: dict[str, Tensor]) -> TextConfig:
    """Reads the widths of the text encoder from a checkpoint's tensors, because the .yaml does not contain them."""
    width = tensors[f"{TEXT_PREFIX}text_model.final_layer_norm.weight"].shape[0]
    inner = tensors[f"{TEXT_PREFIX}text_model.encoder.layers.0.mlp.fc1.weight"].shape[0]
    return TextConfig(hidden_size=width, intermediate_size=inner, projection_dim=width)


@torch.no_grad()
def add_lora(unet: nn.Module, path: Path) -> None:
    """Adds a LoRA (Hu et al., arXiv 2106.09685) to the weights of a UNet.

    Raises KeyError if the file does not change every linear layer and every convolution of the UNet.
    """
    tensors = packing.load(path)
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            layer = f"lora_unet_{name.replace('.', '_')}"
            up, down = (tensors[f"{layer}.lora_{part}.weight"].float().flatten(1) for part in ("up", "down"))
            module.weight += float(tensors[f"{layer}.alpha"]) / len(down) * (up @ down).view_as(module.weight)


def load(path: Path = CHECKPOINT, changes: Path | None = None) -> SmallModel:
    """Loads a model for inference in float32, from a .safetensors file and the .yaml file next to it.

    `changes` is the path of a LoRA. If it is given, the LoRA is added to the weights of the UNet.
    """
    tensors = packing.load(path, torch.float16)
    params = yaml.safe_load(Path(path).with_suffix(".yaml").read_text(encoding="utf-8"))["model"]["params"]
    unet = UNet(_chosen(params["unet_config"]["params"], UNetConfig))
    vae = Autoencoder(_chosen(params["first_stage_config"]["params"]["ddconfig"], AutoencoderConfig))
    text = TextEncoder(text_config(tensors))
    for module, prefix in ((unet, UNET_PREFIX), (vae, VAE_PREFIX), (text, TEXT_PREFIX)):
        module.load_state_dict(_part(tensors, prefix))
    if changes is not None:
        add_lora(unet, changes)
    model = SmallModel(unet, vae, text, params["scale_factor"], tensors["alphas_cumprod"])
    # in this memory format, decoding takes a fifth less time on a CPU
    return model.requires_grad_(False).eval().to(memory_format=torch.channels_last)
