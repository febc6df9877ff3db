"""Tests the autoencoder on a simulated card, with feature maps in every kind of storage. The image stays the same."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from card.host import HALF, HALF_BUT_VAE, CardWebui, Precision, psnr
from card.simulated import GIB, SimulatedCard
from card.test_jobs import LIKE, on_processor, picture
from modules import shared
from reports import Reports

from lib_demofusion.host.common import options
from lib_demofusion.host.images import vae
from lib_demofusion.tiled_vae.feature_maps import Shelf
from lib_demofusion.tiled_vae.layers import decoder_layers
from lib_demofusion.tiled_vae.memory import held_bytes

KINDS = ("whole", "card", "memory", "packed", "file")


def kind_of(shelf: Shelf) -> str:
    """Returns the kind of a shelf."""
    if shelf.folder is not None:
        return "file"
    return "packed" if shelf.packed else "card" if shelf.device.type == "cuda" else "memory"


class Rooms:
    """Sets the free memory that the extension reads, and records the shelves that the extension chooses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.card, self.memory, self.disk = 64 * GIB, 64 * GIB, 64 * GIB
        self.asked: list[Any] = []
        self.taken: list[str] = []
        choose = vae.choose_shelf

        def noted(*args: Any) -> Shelf:
            shelf = choose(*args)
            self.taken.append(kind_of(shelf))
            return shelf

        def usage(folder: Any) -> Any:
            self.asked.append(folder)
            shutil.disk_usage(folder)
            return SimpleNamespace(free=self.disk)

        monkeypatch.setattr(vae, "free_bytes", lambda device: self.card)
        monkeypatch.setattr(vae, "available_bytes", lambda: self.memory)
        monkeypatch.setattr(vae, "disk_usage", usage)
        monkeypatch.setattr(vae, "choose_shelf", noted)

    def only(self, kind: str, size: tuple[int, int], model: Any) -> None:
        """Sets the free memory so that images of `size` cells use this kind of shelf."""
        if kind == "card":
            return
        self.card = 1
        steps = decoder_layers(model.vae.decoder)
        if kind == "packed":
            self.memory = int(held_bytes(steps, size, 3) / vae.MEMORY_SHARE)
        if kind == "file":
            self.memory = 1


@pytest.fixture
def rooms(monkeypatch: pytest.MonkeyPatch) -> Rooms:
    return Rooms(monkeypatch)


@pytest.mark.parametrize("precision", [HALF_BUT_VAE, HALF], ids=["single", "half"])
@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_storage_give_the_same_image(
    webui: CardWebui,
    card: SimulatedCard,
    rooms: Rooms,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    precision: Precision,
) -> None:
    """Balanced decodes and encodes, because it makes its anchors from images."""
    if kind != "whole":
        monkeypatch.setattr(shared.opts, options.DECODE, vae.ALWAYS, raising=False)
        rooms.only(kind, (16, 16), webui.model)
    made = picture(webui.job({"preset": "Balanced", "scale": 2}, card, precision))
    expected = {kind} if kind != "whole" else set()
    if kind == "packed":
        # the smaller base image needs no packing, and maps in half precision are as small as packed ones
        expected = {"memory"} if precision is HALF else {"memory", "packed"}
    assert set(rooms.taken) == expected
    assert psnr(made, on_processor(webui, "Balanced", 2, "txt2img")) >= LIKE


@pytest.mark.parametrize("kind", ["memory", "packed", "file"])
def test_the_encoders_result_is_on_the_card(webui: CardWebui, card: SimulatedCard, rooms: Rooms, kind: str) -> None:
    encoder = webui.model.vae.encoder
    with torch.no_grad(), card:
        moved = webui.model.on(card, torch.float32, torch.float32).vae
        rooms.only(kind, (8, 8), webui.model)
        x = torch.rand(2, 3, 64, 64)
        with vae.in_parts(SimpleNamespace(first_stage_model=moved), vae.ALWAYS):
            made = moved.encoder(x.cuda())
        assert rooms.taken == [kind]
        assert made.device == card.device
        torch.testing.assert_close(made.cpu(), encoder(x), rtol=1e-3, atol=1e-3)


def test_free_disk_space_is_not_queried_if_the_card_has_enough_memory(
    webui: CardWebui, card: SimulatedCard, rooms: Rooms
) -> None:
    rooms.disk = 0
    picture(webui.job({"preset": "Balanced", "scale": 2}, card, HALF))
    with card, torch.no_grad():
        moved = webui.model.on(card, torch.float32, torch.float32).vae
        with vae.in_parts(SimpleNamespace(first_stage_model=moved), vae.ALWAYS):
            moved.decoder(torch.rand(1, 4, 16, 16).cuda())
    assert rooms.taken == ["card"]
    assert rooms.asked == []


@pytest.mark.parametrize("where", ["missing", "a file"])
def test_decoding_works_without_a_folder_for_temporary_files(
    webui: CardWebui, card: SimulatedCard, rooms: Rooms, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, where: str
) -> None:
    folder = tmp_path / "not" / "there"
    if where == "a file":
        folder = tmp_path / "file"
        folder.touch()
    monkeypatch.setattr(shared.opts, "temp_dir", str(folder))
    rooms.only("file", (16, 16), webui.model)
    made = picture(webui.job({"preset": "Balanced", "scale": 2}, card, HALF_BUT_VAE))
    assert set(rooms.taken) == {"file"}
    assert psnr(made, on_processor(webui, "Balanced", 2, "txt2img")) >= LIKE


@pytest.mark.parametrize("allocation", [0, 20, 60, 100])
@pytest.mark.parametrize("network", ["decoder", "encoder"])
def test_a_network_runs_in_parts_after_it_ran_out_of_memory(
    webui: CardWebui,
    card: SimulatedCard,
    rooms: Rooms,
    monkeypatch: pytest.MonkeyPatch,
    reported: Reports,
    network: str,
    allocation: int,
) -> None:
    """The memory is fragmented: the free memory would be enough, but the allocation fails."""
    reported.expect("trying again with smaller tiles")
    whole = vae._Forward.__call__

    def failing(self: Any, x: Any, **kwargs: Any) -> Any:
        if self._network is getattr(shared.sd_model.first_stage_model, network):
            card.fail_in = allocation
        made = whole(self, x, **kwargs)
        card.fail_in = None
        return made

    monkeypatch.setattr(vae._Forward, "__call__", failing)
    made = picture(webui.job({"preset": "Balanced", "scale": 2}, card, HALF))
    assert rooms.taken != []
    assert psnr(made, on_processor(webui, "Balanced", 2, "txt2img")) >= LIKE
