"""Small JSON files in the webui's data directory, which people may edit by hand."""

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
"""Held while a file is read or replaced: Windows does not replace one that another thread reads."""

PAUSES = (0.01, 0.05, 0.1, 0.3, 0.6)
"""Seconds between attempts to replace a file that another program holds open, such as a virus scanner."""


class StorageError(Exception):
    """A file that cannot be read or written, with a sentence for people."""


def path_of(name: str) -> Path:
    """Returns where a file of ours lies."""
    return Path(paths_internal.data_path, name)


def read(name: str) -> dict[str, Any]:
    """Returns what a file holds, nothing where there is none; raises StorageError where it holds no JSON object."""
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
        raise StorageError(f"{path} cannot be read: it holds no JSON object")
    return data


def write(name: str, data: dict[str, Any]) -> None:
    """Replaces a file as a whole, so that nobody ever reads half of it; raises StorageError."""
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
    """Replaces a file by its draft, after pauses where another program holds it open; raises OSError."""
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
    """Returns what a file holds; nothing, and a warning, where it cannot be read."""
    try:
        return read(name)
    except StorageError as error:
        logger.warning("%s", error)
        return {}


def write_if_possible(name: str, data: dict[str, Any]) -> None:
    """Replaces a file, or warns that it could not."""
    try:
        write(name, data)
    except StorageError as error:
        logger.warning("%s", error)
