"""Low-rank changes of a network's weights (LoRA, Hu et al., arXiv 2106.09685) in the file format of the webui.

The repository stores them with 8 bits per weight (`packing.py`).
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from trial import packing

PREFIX, DOWN, UP, ALPHA = "lora_unet_", ".lora_down.weight", ".lora_up.weight", ".alpha"
ABOUT = {"ss_network_module": "networks.lora"}
"""Metadata by which webuis recognise the kind of file."""


class Lora(nn.Module):
    """Two factors for every Linear and Conv2d of a network. A weight changes by up @ down, which is zero at first.

    `network` keeps its own weights. `weights` returns the sums of them and the changes.
    """

    def __init__(self, network: nn.Module, rank: int) -> None:
        super().__init__()
        self.names = [f"{name}.weight" for name, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        weights = dict(network.named_parameters())
        self.shapes = [weights[name].shape for name in self.names]
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for outputs, *inputs in self.shapes:
            width = min(rank, outputs)
            down = torch.empty(width, torch.Size(inputs).numel())
            nn.init.kaiming_uniform_(down, a=5**0.5)
            self.down.append(nn.Parameter(down))
            self.up.append(nn.Parameter(torch.zeros(outputs, width)))

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        """Returns the changed weights of the network, for `torch.func.functional_call`. They pass gradients on."""
        own = dict(network.named_parameters())
        with torch.autocast(self.down[0].device.type, enabled=False):
            changes = [(up @ down).view(shape) for down, up, shape in zip(self.down, self.up, self.shapes)]
        return {name: own[name] + change for name, change in zip(self.names, changes, strict=True)}

    def tensors(self) -> dict[str, Tensor]:
        """Returns the factors in half precision, under the names by which the webui finds a layer."""
        found = {}
        for name, shape, down, up in zip(self.names, self.shapes, self.down, self.up, strict=True):
            layer = PREFIX + name.removesuffix(".weight").replace(".", "_")
            found[layer + DOWN] = down.detach().view(len(down), *shape[1:]).half().contiguous()
            found[layer + UP] = up.detach().view(*up.shape, *(1,) * (len(shape) - 2)).half().contiguous()
            found[layer + ALPHA] = torch.tensor(float(len(down)))
        return found


def save(lora: Lora, path: Path) -> None:
    """Writes the packed file."""
    packing.write(path, packing.pack_rows(lora.tensors()), ABOUT)


def load(path: Path) -> dict[str, Tensor]:
    """Loads the factors of a file, packed or not, under the webui's names."""
    return packing.unpack_rows(load_file(str(path)))


def write_full(source: Path, target: Path) -> None:
    """Writes a packed file as one that the webui accepts as a LoRA."""
    packing.write(target, {name: tensor.half() for name, tensor in load(source).items()}, ABOUT)


@torch.no_grad()
def apply(network: nn.Module, path: Path, strength: float = 1.0) -> None:
    """Adds a file's changes to the weights of a network. Raises KeyError if the file lacks a layer."""
    tensors = load(path)
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            layer = PREFIX + name.replace(".", "_")
            up, down = (tensors[layer + part].float().flatten(1) for part in (UP, DOWN))
            scale = strength * float(tensors[layer + ALPHA]) / len(down)
            module.weight += scale * (up @ down).view_as(module.weight)
