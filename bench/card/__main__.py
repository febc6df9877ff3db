"""Measures DemoFusion on this computer's graphics card: `python -m bench.card`.

The command needs only psutil and a torch that can use the card: no webui, no checkpoint, no download. The UNets and the
autoencoder have the layers of SDXL and SD 1.5, and random weights. The command prints a report and writes it to a file.
You can paste the report into the issue form "Results from my card".
"""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from bench.card.models import TINY, TRUE, Model, Sizes, filled
from bench.card.report import Card, Report, gigabytes
from lib_demofusion import __version__
from trial.autoencoder import Autoencoder


def replace_webui(card: Card) -> None:
    """Adds replacements for the webui's modules to sys.modules, so that lib_demofusion.host can be imported."""
    devices = SimpleNamespace(device=card.device, cpu=torch.device("cpu"), torch_gc=card.release)
    shared = SimpleNamespace(opts=SimpleNamespace(temp_dir=""))
    sys.modules["modules"] = SimpleNamespace(devices=devices, shared=shared)  # type: ignore[assignment]
    sys.modules["modules.paths_internal"] = SimpleNamespace(data_path="")  # type: ignore[assignment]


def measure(report: Report, card: Card, sizes: Sizes) -> None:
    """Runs all measurements, and adds their rows to the report."""
    from bench.card import measurements

    autoencoder = filled(lambda: Autoencoder(sizes.autoencoder), card)
    measurements.measure_vae_precision(report, card, autoencoder)
    for name, (config, native, scales) in sizes.unets.items():
        model = Model(name, config, native, card)
        measurements.measure_calls(report, card, model)
        measurements.measure_stages(report, card, model, scales)
        if name == "SDXL":
            # the UNet of SDXL stays on the card while the VAE runs, as in the webui
            measurements.measure_small_cards(report, card, model, autoencoder, sizes)
            measurements.measure_coding(report, card, autoencoder, sizes.sides)
        measurements.measure_unet_precision(report, model)
        del model


def main(arguments: list[str]) -> int:
    """Runs the command line. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.card", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="use small models, which also run on a CPU")
    parser.add_argument("--minutes", type=float, default=5, help="limit for all measurements together (default: 5)")
    parser.add_argument("--out", type=Path, default=Path("card-report.md"), help="file (default: card-report.md)")
    options = parser.parse_args(arguments)
    # torch.xpu does not exist before torch 2.3
    backends = {"cuda": torch.cuda, "xpu": getattr(torch, "xpu", None), "mps": torch.backends.mps}
    kinds = [kind for kind, backend in backends.items() if backend and backend.is_available()] + ["cpu"] * options.tiny
    if not kinds:
        parser.error("torch finds no GPU. Use --tiny to try the command with small models on the CPU.")
    card = Card(kinds[0])
    try:
        options.out.touch()
    except OSError as problem:
        parser.error(f"--out: {options.out} cannot be written ({problem.strerror}). Name another file.")
    replace_webui(card)
    torch.manual_seed(0)
    memory = gigabytes(card.memory) if card.memory else "memory unknown"
    software = f"torch {torch.__version__}, Python {platform.python_version()}, {platform.system()}"
    title = f"DemoFusion Hires {__version__} on {card.name} ({card.device.type}, {memory}); {software}"
    title += "; small models (--tiny), so the times do not apply to Stable Diffusion" * options.tiny
    sizes = TINY if options.tiny else TRUE
    short = ["SDXL: model call, 1 view", "SDXL: Balanced 2x, one model call", "SDXL: Balanced 4x, one model call"]
    short += [f"VAE: decode {sizes.sides[1]}x{sizes.sides[1]}", "SDXL: half precision"]
    report = Report(title, short, options.out, 60 * options.minutes, card.release)
    with torch.no_grad():
        measure(report, card, sizes)
    print(report.text())
    print(f"Written to {options.out.resolve()}.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("\nStopped. The file contains the measurements made so far.")
