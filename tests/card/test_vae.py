"""Tests the tiled autoencoder on a simulated card.

Images must be nearly the same with every kind of storage for the feature maps of the autoencoder.
"""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from card.host import HALF, HALF_BUT_VAE, CardWebui, Precision, psnr
from card.simulated import GIB, SimulatedCard
from card.test_jobs import LEAST, on_the_cpu, picture
from modules import shared
from reports import Reports

from lib_demofusion.host.common import options
from lib_demofusion.host.images import vae
from lib_demofusion.tiled_vae.feature_maps import Shelf
from lib_demofusion.tiled_vae.layers import decoder_layers
from lib_demofusion.tiled_vae.memory import held_bytes

STORAGES = ("whole", "card", "memory", "packed", "file")
"""The places in which the tiled autoencoder can store feature maps.

"whole" means that the autoencoder runs without tiles and stores nothing. "memory" and "packed" are the computer's
memory. "packed" stores 16 bits per value instead of 32.
"""


def kind_of(shelf: Shelf) -> str:
    """Returns the element of STORAGES for a shelf, which is a place where the extension stores feature maps."""
    if shelf.folder is not None:
        return "file"
    return "packed" if shelf.packed else "card" if shelf.device.type == "cuda" else "memory"


class FreeMemory:
    """Replaces the free memory that the extension reads, and records the kinds of storage that the extension chooses.

    `card`, `memory` and `disk` are the free bytes of the card, of the computer's memory and of the disk. `storages`
    contains the chosen kinds. `disk_queries` contains the folders whose free disk space the extension read.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.card, self.memory, self.disk = 64 * GIB, 64 * GIB, 64 * GIB
        self.disk_queries: list[Any] = []
        self.storages: list[str] = []
        choose = vae.choose_shelf

        def noted(*args: Any) -> Shelf:
            shelf = choose(*args)
            self.storages.append(kind_of(shelf))
            return shelf

        def usage(folder: Any) -> Any:
            self.disk_queries.append(folder)
            # raises the real error if the folder does not exist
            shutil.disk_usage(folder)
            return SimpleNamespace(free=self.disk)

        monkeypatch.setattr(vae, "free_bytes", lambda device: self.card)
        monkeypatch.setattr(vae, "available_bytes", lambda: self.memory)
        monkeypatch.setattr(vae, "disk_usage", usage)
        monkeypatch.setattr(vae, "choose_shelf", noted)

    def require(self, kind: str, size: tuple[int, int], model: Any) -> None:
        """Sets the free memory so that the decoder stores feature maps for latents of `size` in the storage `kind`."""
        if kind == "card":
            return
        self.card = 1
        steps = decoder_layers(model.vae.decoder)
        if kind == "packed":
            # 3 bytes per value are too few for single precision (4 bytes), but enough for packed values (2 bytes)
            self.memory = int(held_bytes(steps, size, 3) / vae.MEMORY_SHARE)
        if kind == "file":
            self.memory = 1


@pytest.fixture
def free_memory(monkeypatch: pytest.MonkeyPatch) -> FreeMemory:
    return FreeMemory(monkeypatch)


@pytest.mark.parametrize("precision", [HALF_BUT_VAE, HALF], ids=["single", "half"])
@pytest.mark.parametrize("kind", STORAGES)
def test_all_kinds_of_storage_give_the_same_image(
    webui: CardWebui,
    card: SimulatedCard,
    free_memory: FreeMemory,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    precision: Precision,
) -> None:
    """The preset Balanced uses both the decoder and the encoder, because it makes its anchors from enlarged images."""
    if kind != "whole":
        monkeypatch.setattr(shared.opts, options.DECODE, vae.ALWAYS, raising=False)
        free_memory.require(kind, (16, 16), webui.model)
    made = picture(webui.job({"preset": "Balanced", "scale": 2}, card, precision))
    expected = {kind} if kind != "whole" else set()
    if kind == "packed":
        # maps of the smaller base image, and maps in half precision, fit without packing
        expected = {"memory"} if precision is HALF else {"memory", "packed"}
    assert set(free_memory.storages) == expected
    assert psnr(made, on_the_cpu(webui, "Balanced", 2, "txt2img")) >= LEAST


@pytest.mark.parametrize("kind", ["memory", "packed", "file"])
def test_the_encoders_result_is_on_the_card(
    webui: CardWebui, card: SimulatedCard, free_memory: FreeMemory, kind: str
) -> None:
    encoder = webui.model.vae.encoder
    with torch.no_grad(), card:
        moved = webui.model.on(card, torch.float32, torch.float32).vae
        free_memory.require(kind, (8, 8), webui.model)
        x = torch.rand(2, 3, 64, 64)
        with vae.in_parts(SimpleNamespace(first_stage_model=moved), vae.ALWAYS):
            made = moved.encoder(x.cuda())
        assert free_memory.storages == [kind]
        assert made.device == card.device
        torch.testing.assert_close(made.cpu(), encoder(x), rtol=1e-3, atol=1e-3)


def test_free_disk_space_is_not_read_if_the_card_has_enough_memory(
    webui: CardWebui, card: SimulatedCard, free_memory: FreeMemory
) -> None:
    free_memory.disk = 0
    picture(webui.job({"preset": "Balanced", "scale": 2}, card, HALF))
    with card, torch.no_grad():
        moved = webui.model.on(card, torch.float32, torch.float32).vae
        with vae.in_parts(SimpleNamespace(first_stage_model=moved), vae.ALWAYS):
            moved.decoder(torch.rand(1, 4, 16, 16).cuda())
    assert free_memory.storages == ["card"]
    assert free_memory.disk_queries == []


@pytest.mark.parametrize("where", ["missing", "a file"])
def test_decoding_works_if_the_folder_for_temporary_files_cannot_be_used(
    webui: CardWebui,
    card: SimulatedCard,
    free_memory: FreeMemory,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
    where: str,
) -> None:
    folder = tmp_path / "not" / "there"
    if where == "a file":
        folder = tmp_path / "file"
        folder.touch()
    monkeypatch.setattr(shared.opts, "temp_dir", str(folder))
    free_memory.require("file", (16, 16), webui.model)
    made = picture(webui.job({"preset": "Balanced", "scale": 2}, card, HALF_BUT_VAE))
    assert set(free_memory.storages) == {"file"}
    assert psnr(made, on_the_cpu(webui, "Balanced", 2, "txt2img")) >= LEAST


@pytest.mark.parametrize("allocation", [0, 20, 60, 100])
@pytest.mark.parametrize("network", ["decoder", "encoder"])
def test_an_autoencoder_runs_in_tiles_after_it_ran_out_of_memory(
    webui: CardWebui,
    card: SimulatedCard,
    free_memory: FreeMemory,
    monkeypatch: pytest.MonkeyPatch,
    reported: Reports,
    network: str,
    allocation: int,
) -> None:
    """One allocation fails although the card reports enough free memory, as with fragmented memory.

    `allocation` is the number of allocations in the call of the network that succeed before that one.
    """
    reported.expect("trying again in smaller parts")
    whole = vae._Forward.__call__

    def failing(self: Any, x: Any, **kwargs: Any) -> Any:
        if self._network is getattr(shared.sd_model.first_stage_model, network):
            card.fail_in = allocation
        made = whole(self, x, **kwargs)
        card.fail_in = None
        return made

    monkeypatch.setattr(vae._Forward, "__call__", failing)
    made = picture(webui.job({"preset": "Balanced", "scale": 2}, card, HALF))
    assert free_memory.storages != []
    assert psnr(made, on_the_cpu(webui, "Balanced", 2, "txt2img")) >= LEAST
