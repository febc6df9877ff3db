"""Installs the extension and the small model into an existing webui, and starts it."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from lib_demofusion.host.backends import FORGE_PACKAGE
from trial import bootstrap

ROOT = bootstrap.ROOT
FOLDER = "sd-webui-demofusion-hires"
PARTS = ("install.py", "javascript", "lib_demofusion", "localizations", "LICENSE", "README.md", "scripts", "style.css")
"""The parts of the repository that the webui needs."""
CPU = ("--skip-torch-cuda-test", "--use-cpu", "all", "--no-half", "--precision", "full")


class InstallError(Exception):
    """The webui cannot be used. The message is for the person who started the command."""


def main(options: argparse.Namespace) -> int:
    """Installs and starts. Returns the exit status."""
    webui = options.webui.resolve()
    try:
        if not (webui / "modules" / "scripts.py").is_file() or not (webui / "launch.py").is_file():
            raise InstallError(
                f"{webui} is not the folder of a webui: it does not contain launch.py and modules/scripts.py."
            )
        print(f"Extension: {install_extension(webui)}")
        checkpoint = None if is_forge(webui) else install_model(webui, options.checkpoint)
        if checkpoint is None:
            print("Model: none. Webuis of Forge's family cannot load a model this small. Use your own checkpoint.")
        return 0 if options.install_only else start(webui, checkpoint, options)
    except (InstallError, OSError) as error:
        print(f"The installation failed: {error}", file=sys.stderr)
        return 1


def is_forge(webui: Path) -> bool:
    """Returns whether the webui belongs to Forge's family.

    These webuis cannot load the small model, because they detect a model's kind by the sizes of its layers.
    """
    return (webui / FORGE_PACKAGE).is_dir()


def install_model(webui: Path, source: Path) -> Path:
    """Installs the model, and the LoRA of the bundled model. Returns the model's path."""
    checkpoint = install_checkpoint(webui, source)
    print(f"Model: {checkpoint}")
    lora = install_lora(webui, source)
    if lora is not None:
        print(f"LoRA for few steps: {lora}")
    return checkpoint


def install_extension(webui: Path) -> Path:
    """Copies the extension, unless the webui has it as a clone or a link. Returns its folder."""
    target = webui / "extensions" / FOLDER
    if target.is_symlink() or (target / ".git").exists() or target.resolve() == ROOT:
        return target
    if target.exists() and not (target / "lib_demofusion").is_dir():
        raise InstallError(f"{target} exists and is not this extension. Rename or delete it first.")
    part = target.with_name(f".{FOLDER}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, part / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy2(source, part / name)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    return target


def install_checkpoint(webui: Path, source: Path) -> Path:
    """Copies the model and its configuration, which contains the tokenizer's folder. Returns the model's path.

    A packed model is unpacked.
    """
    from trial import packing
    from trial.small_model import text_config
    from trial.text import write_clip_folder

    target = webui / "models" / "Stable-diffusion" / source.name
    clip = webui / "models" / f"{source.stem}-clip"
    write_clip_folder(clip, text_config(packing.load(source)))
    target.parent.mkdir(parents=True, exist_ok=True)
    packing.write_full(source, target)
    configuration = source.with_suffix(".yaml").read_text(encoding="utf-8")
    target.with_suffix(".yaml").write_text(with_clip_folder(configuration, clip), encoding="utf-8")
    return target


def install_lora(webui: Path, checkpoint: Path) -> Path | None:
    """Writes the bundled model's LoRA for few steps. Returns its path, or None for another model."""
    from trial import lora
    from trial.small_model import CHECKPOINT, LORA

    if checkpoint.name != CHECKPOINT.name:
        return None
    target = webui / "models" / "Lora" / LORA.name
    target.parent.mkdir(parents=True, exist_ok=True)
    lora.write_full(LORA, target)
    return target


def with_clip_folder(configuration: str, clip: Path) -> str:
    """Returns the configuration with an absolute path to the text encoder's files."""
    import yaml

    parsed = yaml.safe_load(configuration)
    parsed["model"]["params"]["cond_stage_config"]["params"]["version"] = clip.as_posix()
    return yaml.safe_dump(parsed, sort_keys=False)


def python_of(webui: Path) -> Path:
    """Returns the Python that the webui runs with."""
    for place in ("venv/bin/python", "venv/Scripts/python.exe"):
        if (webui / place).is_file():
            return webui / place
    raise InstallError(f"{webui} has no venv yet. Start this webui once in the usual way, then run this command again.")


def start(webui: Path, checkpoint: Path | None, options: argparse.Namespace) -> int:
    """Runs the webui until it ends, with the checkpoint if there is one. Returns its exit status."""
    python = python_of(webui)
    port = bootstrap.free_port(options.port)
    command = [str(python), "launch.py", "--port", str(port)]
    if checkpoint is not None:
        command += ["--ckpt", str(checkpoint)]
    if (
        not is_forge(webui)  # Forge's family has no common flags for a CPU
        and sys.platform != "darwin"
        and bootstrap.answer("import torch; print(torch.cuda.is_available())", python) != "True"
    ):
        command += CPU
    if not options.no_browser:
        command.append("--autolaunch")
    print(f"Starting the webui at http://127.0.0.1:{port}", flush=True)
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run([*command, *options.rest], cwd=webui, env=clean, check=False).returncode
