"""Reads and writes small JSON files in the webui's data directory.

Users can edit the files by hand, so a file can contain anything.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from modules import paths_internal

logger = logging.getLogger("DemoFusion")


LOCK = threading.Lock()
"""Held while a file is read or replaced. Windows cannot replace a file while another thread reads the file."""

PAUSES = (0.01, 0.05, 0.1, 0.3, 0.6)
"""Seconds between attempts to replace a file that another program, such as a virus scanner, has open."""


class StorageError(Exception):
    """A file cannot be read or written. The message is shown to the user."""


def path_of(name: str) -> Path:
    """Returns the path of the file `name` in the webui's data directory."""
    return Path(paths_internal.data_path, name)


def read(name: str) -> dict[str, Any]:
    """Reads a JSON object from a file. Returns an empty dict if the file does not exist.

    Raises StorageError if the file cannot be read or does not contain a JSON object.
    """
    path = path_of(name)
    try:
        with LOCK:
            text = path.read_text(encoding="utf-8-sig")
        data = json.loads(text)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise StorageError(f"{path} cannot be read: it does not contain a JSON object")
    return data


def write(name: str, data: dict[str, Any]) -> None:
    """Writes a JSON object to a file. Raises StorageError if the file cannot be written.

    The file is replaced in one step, so other programs never read a half-written file.
    """
    path = path_of(name)
    draft = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _replace(draft, path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise StorageError(f"{path} cannot be written: {error}") from error


def _replace(draft: Path, path: Path) -> None:
    """Replaces the file `path` by the file `draft`. If another program has `path` open, tries again (see PAUSES).

    Raises OSError if the last attempt fails.
    """
    for pause in PAUSES:
        try:
            with LOCK:
                draft.replace(path)
        except PermissionError:
            time.sleep(pause)
        else:
            return
    with LOCK:
        draft.replace(path)


def read_if_possible(name: str) -> dict[str, Any]:
    """Reads a JSON object as `read` does. Logs a warning and returns an empty dict in place of a StorageError."""
    try:
        return read(name)
    except StorageError as error:
        logger.warning("%s", error)
        return {}


def write_if_possible(name: str, data: dict[str, Any]) -> None:
    """Writes a JSON object as `write` does. Logs a warning in place of a StorageError."""
    try:
        write(name, data)
    except StorageError as error:
        logger.warning("%s", error)
