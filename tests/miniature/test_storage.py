"""Tests the JSON files of the extension on Windows, where a file cannot be replaced while a program reads it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from modules import paths_internal

from lib_demofusion.host.common import storage

NAME = "demofusion-test.json"


class Windows:
    """Imitates Windows: while one thread reads a file, replacing a file raises PermissionError. Reading takes 0.2 s."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.readers = 0
        self.reading = threading.Event()
        read_text, replace = Path.read_text, Path.replace

        def slowly_read(path: Path, *args: str, **kwargs: str) -> str:
            self.readers += 1
            self.reading.set()
            time.sleep(0.2)
            try:
                return read_text(path, *args, **kwargs)
            finally:
                self.readers -= 1

        def replace_unread(path: Path, target: Path) -> Path:
            if self.readers:
                raise PermissionError(13, "The process cannot access the file because it is being used")
            return replace(path, target)

        monkeypatch.setattr(Path, "read_text", slowly_read)
        monkeypatch.setattr(Path, "replace", replace_unread)


@pytest.fixture
def windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Windows:
    """Writes a file with the name NAME, and then imitates Windows."""
    monkeypatch.setattr(paths_internal, "data_path", str(tmp_path))
    storage.write(NAME, {"before": 1})
    return Windows(monkeypatch)


@pytest.mark.parametrize("reader", [lambda: storage.read(NAME), lambda: storage.path_of(NAME).read_text()])
def test_a_file_that_another_thread_reads_is_replaced_after_the_thread_has_finished(
    windows: Windows, reader: Callable[[], object]
) -> None:
    """The first reader is the extension itself. The second reader imitates another program."""
    thread = threading.Thread(target=reader)
    thread.start()
    windows.reading.wait()
    storage.write(NAME, {"after": 2})
    thread.join()
    assert storage.read(NAME) == {"after": 2}
    assert [path.name for path in storage.path_of(NAME).parent.iterdir()] == [NAME]


def test_an_error_is_raised_if_the_file_remains_in_use(windows: Windows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PAUSES", (0.01,))
    windows.readers = 1
    with pytest.raises(storage.StorageError, match=f"{NAME} cannot be written: .*being used"):
        storage.write(NAME, {"after": 2})
    windows.readers = 0
    assert storage.read(NAME) == {"before": 1}
