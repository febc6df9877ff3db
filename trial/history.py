"""Retrieves a large file, which is no longer in the checkout, from the repository's history."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def take(blob: str, target: Path, root: Path = ROOT) -> None:
    """Writes git's object `blob` to a file, unless the file exists. Raises FileNotFoundError if the history lacks it.

    A folder from a zip file has no history, and a shallow clone has no old history.
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
