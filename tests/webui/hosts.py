"""Detects which webui a folder contains, and chooses the arguments and settings to start this webui on a CPU."""

from __future__ import annotations

import shlex
import struct
from dataclasses import dataclass
from pathlib import Path

COMMON = "--skip-prepare-environment --skip-torch-cuda-test --no-hashing --api --server-name 127.0.0.1"


@dataclass(frozen=True)
class Host:
    """One kind of webui, and the arguments that start it."""

    name: str
    flags: str
    """The flags that differ between the webuis. With them, the webui runs on the CPU and downloads no checkpoint."""
    checkpoints: str = "--ckpt-dir"
    """The flag that sets the folder of checkpoints."""
    models: str | None = "--models-dir"
    """The flag that sets the folder of all other models, or None if the webui has no such flag."""
    serves_itself: bool = True
    """Whether the page can load the webui's own files if the data directory is not the webui's folder."""

    def arguments(self, port: int, data: Path, checkpoints: Path, models: Path) -> list[str]:
        """Returns the arguments for launch.py. `models` is the folder of all models that are not checkpoints."""
        places = ["--port", str(port), "--data-dir", str(data), self.checkpoints, str(checkpoints)]
        if self.models is not None:
            places += [self.models, str(models)]
        if not self.serves_itself:
            # the path is resolved, because gradio compares it with paths whose links are resolved
            places += ["--gradio-allowed-path", str(models.parent.resolve())]
        return [*shlex.split(f"{COMMON} {self.flags}"), *places]


WEBUI = Host("AUTOMATIC1111's webui", "--use-cpu all --no-half --precision full --no-download-sd-model")
FORGE = Host("Forge", "--always-cpu --attention-pytorch --no-download-sd-model", serves_itself=False)
REFORGE = Host("reForge", "--always-cpu --attention-pytorch --no-download-sd-model")
NEO = Host("Forge Neo", "--cpu --skip-python-version-check --skip-version-check", "--ckpt-dirs", None, False)


def find(folder: Path) -> Host:
    """Returns the kind of webui in a folder."""
    version = folder / "modules_forge" / "forge_version.py"
    if not version.exists():
        return WEBUI
    if (folder / "ldm_patched").is_dir():
        return REFORGE
    return NEO if "neo" in version.read_text(encoding="utf-8") else FORGE


def settings_of(host: Host, folder: Path) -> dict[str, object]:
    """Returns the settings that the webui needs before its first start.

    Forge Neo waits for a key press if its settings file does not contain VERSION_UID. Other webuis need no settings.
    """
    if host is not NEO:
        return {}
    source = (folder / "modules" / "launch_utils.py").read_text(encoding="utf-8")
    line = next((line for line in source.splitlines() if line.startswith("VERSION_UID")), "")
    return {"VERSION_UID": line.partition("=")[2].strip().strip("\"'")} if line else {}


def prepare(folder: Path, data: Path) -> None:
    """Creates a checkpoint without weights in the data directory, so that Forge Neo offers PiD.

    Forge Neo offers PiD only if a checkpoint has "pid" in its name. For other webuis, the function does nothing.
    """
    if (folder / "extensions-builtin" / "sd_forge_pid").is_dir():
        models = data / "models" / "Stable-diffusion"
        models.mkdir(parents=True)
        (models / "pid-without-weights.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
