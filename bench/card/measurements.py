"""Adds the rows of the report: model calls, stages, decoding and encoding, precision, and simulated smaller GPUs."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from logging.handlers import BufferingHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from bench.card.models import Model, Sizes
from bench.card.report import Card, Cells, Report, gigabytes
from lib_demofusion.host.backends.interface import StageParts
from lib_demofusion.host.backends.webui_denoiser import FusedModel
from lib_demofusion.host.common import replaced
from lib_demofusion.host.common.memory import device_memory
from lib_demofusion.host.images import vae
from lib_demofusion.method.batching import ViewBatches
from lib_demofusion.method.conditioning import Frame
from lib_demofusion.method.plan import CELL, make_plan
from lib_demofusion.method.residual import VarianceExploding
from lib_demofusion.method.sampler_steps import StepDetector
from lib_demofusion.method.schedule import TIMESTEPS, weights_at
from lib_demofusion.method.stage import SamplerTraits, StageRun, make_anchor
from lib_demofusion.settings.fields import Settings
from lib_demofusion.settings.presets import PRESETS
from lib_demofusion.settings.reading import parse_settings
from lib_demofusion.tiled_vae.feature_maps import Shelf
from lib_demofusion.tiled_vae.tiling import ALWAYS, AUTOMATIC, Options, decode_tiled

VIEW_BATCHES, CFG = (1, 2, 4, 8, 16), 7.0
LOG = BufferingHandler(1000)
"""Collects log messages. If the VAE runs in tiles, host/images/vae.py logs the size of the tiles. `code` reads this."""
logging.basicConfig(level=logging.INFO, handlers=[LOG])
LONGER = 6
"""Decoding or encoding an image is estimated to take this many times as long as for an image with half the side."""
# without a folder, decoding cannot fill the disk with temporary files
vae.temporary_folder = lambda: None


def slowest_call(model: Model, settings: Settings) -> tuple[Callable[[], None], ViewBatches]:
    """Returns a function that makes the slowest model call of the last stage, and the ViewBatches of that stage.

    After the model call, the returned function changes x as a step of Euler does. `slowest_call` calls the function
    once before it returns it, because the first call chooses the number of views in a batch and loads the kernels.
    """
    plan = make_plan(settings, model.native)
    stage = plan.stages[-1]
    anchor = make_anchor(torch.randn(1, 4, *model.native, device=model.device), plan, stage)
    traits = SamplerTraits(VarianceExploding(model.sigma_to_t), StepDetector())
    run = StageRun(stage, settings, anchor, torch.randn_like(anchor), traits)
    batches = ViewBatches(settings.view_batch, device_memory())
    fused = FusedModel(model, StageParts(None, run, plan, batches, Frame(plan.pixels), lambda cells: None))
    fused.images = 1
    # at some timesteps, the presets skip the tiles or the dilated views; the slowest call evaluates the most cells
    timesteps = range(int((TIMESTEPS - 1) * settings.denoising_strength), -1, -1)
    slowest = max(timesteps, key=lambda t: stage.cells_at(weights_at(t, settings).dilated))
    x, sigma = torch.zeros_like(anchor), model.sigmas[slowest]

    def call() -> None:
        model.shapes.clear()
        run.before_call(x, sigma)
        cond, uncond = fused(torch.cat([x, x]), sigma.repeat(2), model.cond).chunk(2)
        x.lerp_(uncond + CFG * (cond - uncond), 0.05)

    call()
    return call, batches


def measure_calls(report: Report, card: Card, model: Model) -> None:
    """Adds a row for each number of views in VIEW_BATCHES.

    A row measures one call of the UNet without the extension. The call evaluates cond and uncond of every view.
    """

    def row(views: int) -> Cells:
        x = torch.randn(2 * views, 4, *model.native, device=card.device)
        if views == 1:
            # not measured, because this call builds the UNet and loads the kernels
            model.bare(x)
        seconds, peak, _ = card.measure(partial(model.bare, x))
        model.seconds[views] = seconds / views
        return f"{seconds:.3f}", gigabytes(peak), f"{seconds / views:.3f} s a view"

    for views in VIEW_BATCHES:
        estimate = 2 * views * min(model.seconds.values(), default=0.0)
        report.attempt(f"{model.name}: model call, {views} view{'s' * (views > 1)}", partial(row, views), estimate)


def measure_stages(report: Report, card: Card, model: Model, scales: Sequence[int]) -> None:
    """Adds a row for each preset and scale: the slowest model call of the last stage, compared with the UNet alone."""

    def row(settings: Settings) -> Cells:
        call, batches = slowest_call(model, settings)
        seconds, peak, waits = card.measure(call)
        crops = [torch.zeros(shape, device=card.device) for shape in model.shapes]
        bare, _, _ = card.measure(lambda: [model.bare(x) for x in crops], count_memory=False)
        fastest = min(model.seconds, key=model.seconds.__getitem__, default="-")
        views = f"{sum(map(len, crops)) // 2} views, view batch chosen / fastest {batches.views} / {fastest}"
        overhead = f"overhead {seconds / bare - 1:+.2%} (UNet alone: {bare:.3f} s)"
        remarks = f"{overhead}, waits {'not counted' if waits is None else waits}, {views}"
        return f"{seconds:.3f}", gigabytes(peak), remarks

    for scale in scales:
        for preset in reversed(PRESETS):
            settings = parse_settings({"preset": preset, "scale": scale})
            stage = make_plan(settings, model.native).stages[-1]
            estimate = 3 * (stage.local_count + stage.dilated_count) * min(model.seconds.values(), default=0.0)
            report.attempt(f"{model.name}: {preset} {scale}x, one model call", partial(row, settings), estimate)


def code(card: Card, autoencoder: Any, network: str, side: int, mode: str = AUTOMATIC) -> tuple[float, int, str]:
    """Decodes a random latent or encodes a random image, as the extension does. `network` is "decode" or "encode".

    `side` is the image's side in pixels. `mode` is one of `tiled_vae.tiling.MODES`. Returns the seconds, the memory in
    bytes, and how the VAE ran: "in one piece", or "in tiles of ..." with their size and the place of the feature maps.
    """
    LOG.buffer.clear()
    function, channels, factor = (autoencoder.decode, 4, CELL) if network == "decode" else (autoencoder.encode, 3, 1)
    x = torch.randn(1, channels, side // factor, side // factor, device=card.device, dtype=card.half)
    with vae.in_parts(SimpleNamespace(first_stage_model=autoencoder), mode):
        seconds, peak, _ = card.measure(partial(function, x))
    message = LOG.buffer[-1].getMessage() if LOG.buffer else "in one piece"
    return seconds, peak, message.removeprefix("running the VAE ")


def measure_coding(report: Report, card: Card, autoencoder: Any, sides: Sequence[int]) -> None:
    """Adds three rows for each side of an image in `sides`, which are in pixels.

    In the rows for decoding and encoding, the extension chooses whether to use tiles. The third row measures decoding
    that always uses tiles.
    """
    found: dict[str, float] = {}

    def row(network: str, mode: str, side: int) -> Cells:
        seconds, peak, method = code(card, autoencoder, network, side, mode)
        found[network + mode] = seconds
        return f"{seconds:.2f}", gigabytes(peak), method

    for side in sides:
        for network, mode in (("decode", AUTOMATIC), ("decode", ALWAYS), ("encode", AUTOMATIC)):
            name = f"VAE: {network} {side}x{side}" + " in parts" * (mode == ALWAYS)
            report.attempt(name, partial(row, network, mode, side), LONGER * found.get(network + mode, 0.0))


def decibels(found: Tensor, reference: Tensor) -> str:
    """Formats the power of the reference divided by the power of the error, in dB. Without an error: "the same"."""
    reference = reference.cpu().double()
    error = (found.cpu().double() - reference).square().mean()
    return "the same" if error == 0 else f"{10 * float((reference.square().mean() / error).log10()):.1f} dB"


def measure_unet_precision(report: Report, model: Model) -> None:
    """Adds a row that compares the UNet in half precision with the UNet in single precision.

    Afterwards, the model is in single precision.
    """

    def row() -> Cells:
        x = torch.randn(2, 4, *model.native, device=model.device)
        half = model.bare(x) - x
        model.unet.float()
        model.cond = {key: value.float() for key, value in model.cond.items()}
        return "", "", decibels(half, model.bare(x) - x)

    report.attempt(f"{model.name}: half precision", row)


def measure_vae_precision(report: Report, card: Card, autoencoder: Any) -> None:
    """Adds a row for each precision and method: in one piece, or in tiles with one of four `shelves` for feature maps.

    A row compares the decoded image with the image of the same latent, decoded in one piece in single precision.
    """
    z, single = torch.randn(1, 4, 16, 16, device=card.device), copy.deepcopy(autoencoder).float()

    def row(network: Any, shelf: Shelf | None) -> Cells:
        latent = network.post_quant_conv(z.to(network.post_quant_conv.weight.dtype))
        image = network.decoder(latent) if shelf is None else decode_tiled(network.decoder, latent, Options(8, shelf))
        return "", "", decibels(image, single.decode(z))

    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        shelves = [Shelf(card.device), Shelf(cpu), Shelf(cpu, packed=True), Shelf(cpu, True, Path(folder))]
        for precision, network in (("half", autoencoder), ("single", single)):
            for shelf in (None, *shelves):
                method = f"in tiles, feature maps in {shelf}" if shelf else "in one piece"
                report.attempt(f"VAE: {precision} precision, {method}", partial(row, network, shelf))


def measure_small_cards(report: Report, card: Card, model: Model, autoencoder: Any, sizes: Sizes) -> None:
    """Adds a row for each amount of memory in `sizes.cards` that is smaller than the card's memory.

    While a row is measured, torch may use only this amount. The row measures the slowest model call of Balanced at
    2x, and the peak memory of decoding an image whose side is `sizes.sides[1]`. Without CUDA, no row is added.
    """

    def row(size: int) -> Cells:
        torch.cuda.set_per_process_memory_fraction(size / card.memory)
        with replaced(torch.cuda, mem_get_info=lambda *_: (max(size - torch.cuda.memory_reserved(), 0), size)):
            call, batches = slowest_call(model, parse_settings({"preset": "Balanced", "scale": 2}))
            seconds, stage, _ = card.measure(call)
            _, decoding, method = code(card, autoencoder, "decode", sizes.sides[1])
        peaks = f"stage {gigabytes(stage)}, decode {gigabytes(decoding)}"
        return f"{seconds:.3f}", peaks, f"view batch {batches.views}, decode {sizes.sides[1]} {method}"

    for size in sizes.cards:
        if card.memory > size:
            name = f"A card of {gigabytes(size)} with {model.name}: Balanced 2x, one model call"
            report.attempt(name, partial(row, size))
            torch.cuda.set_per_process_memory_fraction(1.0)
