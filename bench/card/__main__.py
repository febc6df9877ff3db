"""Measures DemoFusion on this computer's graphics card: `python -m bench.card`.

It needs only psutil and a torch that can use the card: no webui, no checkpoint, no download. The UNets and the
autoencoder have the sizes of SDXL and SD 1.5, and random weights. The command prints a report and writes it to a file.
You can paste it into the issue form "Results from my card".
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import psutil  # noqa: F401
    import torch
except ImportError as problem:
    python = "Start it with the Python of your webui, for instance venv/bin/python -m bench.card"
    sys.exit(f"This needs {problem.name}. {python}")

from bench.card.device import Card, find_card, stand_in_webui
from bench.card.models import SD15, SDXL, TINY_SD15, TINY_SDXL, Kind, Model, autoencoder, filled
from lib_demofusion import __version__

NO_CARD = "torch sees no graphics card here. With --tiny the same measurements run on the processor, on small models."


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.card", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="use small models, which also run on a CPU")
    parser.add_argument(
        "--minutes", type=float, default=5, help="skip measurements that would exceed this time in minutes (default: 5)"
    )
    parser.add_argument("--out", type=Path, default=Path("card-report.md"), help="file (default: card-report.md)")
    return parser.parse_args(arguments)


@dataclass(frozen=True)
class Sizes:
    """The sizes that are measured: those of Stable Diffusion, or small ones."""

    kinds: tuple[Kind, Kind]
    sides: tuple[int, ...]
    """Sides of the decoded and encoded images, in pixels."""
    cells: int
    """Side of the latent with which the decoding methods are compared."""
    cards: dict[str, int]
    """Memory of the smaller cards that this card simulates, in bytes by name."""


TRUE = Sizes((SD15, SDXL), (2048, 4096, 8192), 64, {"8 GB": 8 << 30, "12 GB": 12 << 30})
TINY = Sizes((TINY_SD15, TINY_SDXL), (64, 128, 256), 8, {"8 MB": 8 << 20, "12 MB": 12 << 20})


def measure(options: argparse.Namespace, card: Card) -> None:
    """Measures everything and prints the report."""
    from bench.card import vae
    from bench.card.report import Report, gigabytes

    sizes = TINY if options.tiny else TRUE
    memory = gigabytes(card.memory) if card.memory else "memory unknown"
    software = f"torch {torch.__version__}, Python {platform.python_version()}, {platform.system()}"
    title = [f"DemoFusion Hires {__version__} on {card.name} ({card.device.type}, {memory}); {software}"]
    title += ["Small models (--tiny): these times do not apply to Stable Diffusion."] if options.tiny else []
    report = Report(title, options.out, 60 * options.minutes, card.release)
    report.found.update(card=f"{card.name}, {memory}", software=software)
    networks = filled(lambda: autoencoder(options.tiny), card.device, card.half)
    vae.measure_vae_precision(report, card, networks, sizes.cells)
    measure_kind(report, card, sizes.kinds[0], (0.1, 0.2), lambda model: None)

    def with_large_images(model: Model | None) -> None:
        if model is not None:
            vae.measure_small_cards(report, card, (model, networks), sizes.cards, sizes.sides[1])
        vae.measure_coding(report, card, networks, sizes.sides, 1.0)

    measure_kind(report, card, sizes.kinds[1], (0.4, 0.7), with_large_images)
    print(report.text())
    print(f"Written to {options.out.resolve()}.", file=sys.stderr)


def measure_kind(
    report: Any, card: Card, kind: Kind, shares: tuple[float, float], beside: Callable[[Model | None], None]
) -> None:
    """Measures one UNet, then runs `beside` with the UNet on the card.

    `shares` are the parts of the total time after which the measurements of calls and of stages end.
    """
    from bench.card import stages, vae
    from bench.card.report import Row, gigabytes

    made: list[Model] = []

    def load() -> Row:
        seconds = card.seconds(lambda: made.append(Model(kind, card.device, card.half)))
        weights = sum(weight.numel() * weight.element_size() for weight in made[0].unet.parameters())
        return Row(f"{seconds:.1f}", "", gigabytes(weights), "weights in half precision")

    if not report.attempt(f"{kind.name}: UNet", load):
        beside(None)
        return
    stages.measure_calls(report, card, made[0], shares[0])
    stages.measure_stages(report, card, made[0], shares[1])
    beside(made[0])
    vae.measure_unet_precision(report, card, made[0])


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    options = parse(arguments)
    card = find_card(options.tiny)
    if card is None:
        print(NO_CARD, file=sys.stderr)
        return 1
    try:
        options.out.touch()
    except OSError as problem:
        print(f"--out: {options.out} cannot be written ({problem.strerror}). Name another file.", file=sys.stderr)
        return 1
    stand_in_webui(card)
    if options.tiny and card.device.type == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        measure(options, card)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("\nStopped. The file contains the measurements made so far.")
