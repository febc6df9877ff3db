"""Takes a file that left the checkout for its size from the repository's own history."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def take(blob: str, target: Path, root: Path = ROOT) -> None:
    """Writes what git calls `blob` to a file, unless that is there; raises FileNotFoundError where history lacks it.

    A folder that was downloaded as a zip has no history, a shallow clone no old one.
    """
    if target.is_file():
        return
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            subprocess.run(
                ["git", "-C", str(root), "cat-file", "blob", blob], stdout=file, stderr=subprocess.PIPE, check=True
            )
    except (OSError, subprocess.CalledProcessError) as error:
        partial.unlink(missing_ok=True)
        said = getattr(error, "stderr", None) or str(error).encode()
        raise FileNotFoundError(
            f"{target.name} is kept in the history of the repository alone, and {root} has none that holds it "
            f"({said.decode(errors='replace').strip()}). Clone the repository with git; in a shallow clone, "
            "git fetch --unshallow brings the rest."
        ) from error
    partial.replace(target)
