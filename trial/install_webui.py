"""Installs the extension and the small model into an existing webui, and starts the webui.

The command `python try_demofusion.py --webui DIR` runs this module.
"""

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
"""The files and folders of the repository that the webui needs."""
CPU = ("--skip-torch-cuda-test", "--use-cpu", "all", "--no-half", "--precision", "full")
"""Command line flags with which AUTOMATIC1111's webui runs on a CPU."""


class InstallError(Exception):
    """The extension or the model cannot be installed. The command prints the message and ends."""


def main(options: argparse.Namespace) -> int:
    """Installs the extension and the model, and starts the webui unless `--install-only` is set.

    Returns the exit status.
    """
    webui = options.webui.resolve()
    try:
        if not (webui / "modules" / "scripts.py").is_file() or not (webui / "launch.py").is_file():
            raise InstallError(
                f"--webui: {webui} does not contain launch.py and modules/scripts.py. Use the main folder of a webui."
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

    These webuis recognize the architecture of a model by the sizes of its layers. They do not know the small model.
    """
    return (webui / FORGE_PACKAGE).is_dir()


def install_extension(webui: Path) -> Path:
    """Copies the extension into the webui, or replaces an older copy. Returns the folder of the extension.

    If the folder is a link, a git repository or this repository, it is not changed. Raises InstallError if the folder
    contains something else than the extension.
    """
    target = webui / "extensions" / FOLDER
    if target.is_symlink() or (target / ".git").exists() or target.resolve() == ROOT:
        return target
    if target.exists() and not (target / "lib_demofusion").is_dir():
        raise InstallError(f"{target} exists and is not this extension. Rename or delete it first.")
    part = target.with_name(f".{FOLDER}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for source in (ROOT / name for name in PARTS):
        if source.is_dir():
            shutil.copytree(source, part / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, part)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    return target


def install_model(webui: Path, source: Path) -> Path:
    """Writes the model, its configuration and its tokenizer into the webui. Returns the path of the model.

    With the bundled model, the LoRA for few steps is also installed.
    """
    import yaml

    from trial import packing, small_model, text

    models = webui / "models"
    clip = models / f"{source.stem}-clip"
    text.write_clip_folder(clip, small_model.text_config(packing.load(source)))
    target = models / "Stable-diffusion" / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    packing.write_full(source, target)
    configuration = yaml.safe_load(source.with_suffix(".yaml").read_text(encoding="utf-8"))
    configuration["model"]["params"]["cond_stage_config"]["params"]["version"] = clip.as_posix()
    target.with_suffix(".yaml").write_text(yaml.safe_dump(configuration, sort_keys=False), encoding="utf-8")
    print(f"Model: {target}")
    if source.name == small_model.CHECKPOINT.name:
        lora = models / "Lora" / small_model.LORA.name
        lora.parent.mkdir(parents=True, exist_ok=True)
        packing.write_full(small_model.LORA, lora)
        print(f"LoRA for few steps: {lora}")
    return target


def python_of(webui: Path) -> Path:
    """Returns the Python of the webui's own virtual environment. Raises InstallError if there is none."""
    for place in ("venv/bin/python", "venv/Scripts/python.exe"):
        if (webui / place).is_file():
            return webui / place
    raise InstallError(f"{webui} has no venv yet. Start this webui once in the usual way, then run this command again.")


def start(webui: Path, checkpoint: Path | None, options: argparse.Namespace) -> int:
    """Starts the webui, waits until it ends, and returns its exit status.

    Without a checkpoint, the webui chooses one itself.
    """
    python = python_of(webui)
    port = bootstrap.free_port(options.port)
    command = [str(python), "launch.py", "--port", str(port)]
    if checkpoint is not None:
        command += ["--ckpt", str(checkpoint)]
    if (
        not is_forge(webui)  # webuis of Forge's family have other flags for running on a CPU
        and sys.platform != "darwin"
        and bootstrap.answer("import torch; print(torch.cuda.is_available())", python) != "True"
    ):
        command += CPU
    if not options.no_browser:
        command.append("--autolaunch")
    print(f"Starting the webui at http://127.0.0.1:{port}", flush=True)
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run([*command, *options.rest], cwd=webui, env=clean, check=False).returncode
