"""Measures the autoencoder at large sizes, the precision of every decoding method, and cards with less memory."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from bench.card.device import Card
from bench.card.models import Model, converted
from bench.card.report import Report, Row, gigabytes, promised
from bench.card.stages import StageCalls
from lib_demofusion.host.images import vae as host_vae
from lib_demofusion.method.plan import CELL
from lib_demofusion.tiled_vae.feature_maps import Shelf
from lib_demofusion.tiled_vae.tiling import Options, decode_tiled

SLOWER = 1.5
"""Factor by which decoding a large image in parts may take longer than its number of pixels suggests."""


class Ways(logging.Handler):
    """Collects the log messages in which lib_demofusion.host.images.vae reports its choice."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.taken: list[str] = []
        logger = logging.getLogger("DemoFusion")
        logger.setLevel(logging.INFO)
        logger.handlers, logger.propagate = [self], False

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.INFO and len(record.args or ()) == 2:
            tile, shelf = record.args  # type: ignore[misc]
            place = "in a file" if shelf.folder else "in memory" if shelf.device.type == "cpu" else "on the card"
            self.taken.append(f"tiles of {tile}, maps {place}{', packed' * shelf.packed}")

    def take(self) -> str:
        """Returns the choices since the last call, in order."""
        text = "; then ".join(self.taken) or "whole"
        self.taken.clear()
        return text


def measure_coding(report: Report, card: Card, autoencoder: Any, sides: tuple[int, ...], share: float) -> None:
    """Adds rows for decoding and encoding at every size with the extension's own choice, and for decoding in parts."""
    ways, model = Ways(), SimpleNamespace(first_stage_model=autoencoder)
    # a benchmark should not fill a disk
    host_vae.temporary_folder = lambda: None
    seconds: dict[str, float] = {}

    def row(what: str, mode: str, side: int) -> Row:
        with host_vae.in_parts(model, mode):
            if what == "decode":
                z = torch.randn(1, 4, side // CELL, side // CELL, device=card.device, dtype=card.half)
                found = card.measure(lambda: autoencoder.decode(z))
            else:
                x = torch.rand(1, 3, side, side, device=card.device, dtype=card.half)
                found = card.measure(lambda: autoencoder.encode(x))
        seconds[what + mode] = found.seconds
        way = ways.take().split("; then ")[0]
        if (what, mode) == ("decode", host_vae.AUTOMATIC):
            report.found["decode"] = f"{side}: {found.seconds:.1f} s, {gigabytes(found.peak)}, {way}"
        compared = promised(side) if what == "decode" else ""
        return Row(f"{found.seconds:.2f}", compared, gigabytes(found.peak), way)

    kinds = (("decode", host_vae.AUTOMATIC), ("decode", host_vae.ALWAYS), ("encode", host_vae.AUTOMATIC))
    for side in sides:
        for what, mode in kinds:
            name = f"VAE: {what} {side}x{side}" + (" in parts" if mode == host_vae.ALWAYS else "")
            estimate = 4 * SLOWER * seconds.get(what + mode, 0)
            report.attempt(name, lambda what=what, mode=mode, side=side: row(what, mode, side), estimate, share)
            ways.take()


def decibels(found: Tensor, reference: Tensor) -> str:
    """Returns by how many dB the power of the difference is below the power of the reference."""
    reference = reference.cpu().double()
    error = (found.cpu().double() - reference).square().mean()
    return "the same" if error == 0 else f"{10 * float((reference.square().mean() / error).log10()):.1f} dB"


def measure_unet_precision(report: Report, card: Card, model: Model) -> None:
    """Compares the UNet's prediction in half precision with that in single precision.

    It adds a row and leaves the model in single precision.
    """

    def row() -> Row:
        x = torch.randn(2, 4, *model.kind.native, device=card.device)
        sigma = model.sigmas[[500]].repeat(2)
        half = model(x, sigma, model.cond) - x
        converted(model.unet, torch.float32)
        model.dtype = torch.float32
        single = model(x, sigma, {key: value.float() for key, value in model.cond.items()}) - x
        report.found["half"] = decibels(half, single)
        return Row(compared="single precision", remarks=report.found["half"])

    # this is quick and comes last, so it runs even after the time limit
    report.attempt(f"{model.kind.name}: prediction in half precision", row, share=2.0)


def measure_vae_precision(report: Report, card: Card, autoencoder: Any, cells: int) -> None:
    """Adds a row for every decoding method, compared with decoding in one piece in single precision."""
    z = torch.randn(1, 4, cells, cells, device=card.device)
    single, tile = converted(copy.deepcopy(autoencoder), torch.float32), cells // 2

    def in_parts(network: Any, latent: Tensor, **shelf: Any) -> Callable[[], Tensor]:
        place = {"device": torch.device("cpu"), **shelf}
        return lambda: decode_tiled(network.decoder, network.post_quant_conv(latent), Options(tile, Shelf(**place)))

    with tempfile.TemporaryDirectory() as folder:
        half, file = z.to(card.half), {"packed": True, "folder": Path(folder)}
        ways = {
            "half precision": lambda: autoencoder.decode(half),
            "half precision, in parts on the card": in_parts(autoencoder, half, device=card.device),
            "half precision, in parts in memory": in_parts(autoencoder, half),
            "half precision, in parts in a file": in_parts(autoencoder, half, **file),
            "single precision, in parts on the card": in_parts(single, z, device=card.device),
            "single precision, packed in memory": in_parts(single, z, packed=True),
            "single precision, packed in a file": in_parts(single, z, **file),
        }
        for name, decode in ways.items():

            def row(decode: Callable[[], Tensor] = decode) -> Row:
                return Row(compared="single precision", remarks=decibels(decode(), single.decode(z)))

            report.attempt(f"VAE: {name}", row)


def measure_small_cards(report: Report, card: Card, parts: tuple[Model, Any], sizes: dict[str, int], side: int) -> None:
    """Adds a row for each smaller card that this card can simulate: a stage of Balanced at 2x, and decoding."""
    model, autoencoder = parts
    ways = Ways()

    def row(size: int) -> Row:
        with card.limited(size), host_vae.in_parts(SimpleNamespace(first_stage_model=autoencoder)):
            stage = StageCalls(model, "Balanced", 2)
            stage.choose_views()
            called = card.measure(stage.call)
            views = stage.batches.views
            del stage
            card.release()
            z = torch.randn(1, 4, side // CELL, side // CELL, device=card.device, dtype=card.half)
            decoded = card.measure(lambda: autoencoder.decode(z))
        peaks = f"stage {gigabytes(called.peak)}, decode {gigabytes(decoded.peak)}"
        return Row(f"{called.seconds:.3f}", "", peaks, f"{views} views at once; decode {side}x{side}: {ways.take()}")

    for name, size in sizes.items():
        if card.device.type == "cuda" and card.memory and card.memory > size:
            name = f"A card of {name} with {model.kind.name}: Balanced 2x, one model call"
            report.attempt(name, lambda size=size: row(size))
            ways.take()
