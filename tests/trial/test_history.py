"""Tests files that exist only in the git history, in a repository made for the test."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from trial import history, small_model

CONTENT = bytes(range(256)) * 300


def git(folder: Path, *arguments: str) -> str:
    """Runs git and returns its output."""
    names = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.autocrlf=false"]
    return subprocess.run(
        ["git", "-C", str(folder), *names, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> tuple[Path, str]:
    """Creates a repository whose history contains a file. Returns the folder and git's hash of the file."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "model.bin").write_bytes(CONTENT)
    git(folder, "add", "model.bin")
    git(folder, "commit", "-qm", "with")
    blob = git(folder, "rev-parse", "HEAD:model.bin")
    git(folder, "rm", "-q", "model.bin")
    git(folder, "commit", "-qm", "without")
    return folder, blob


def test_a_file_of_the_past_is_taken(repository: tuple[Path, str], tmp_path: Path) -> None:
    folder, blob = repository
    target = tmp_path / "model.bin"
    history.take(blob, target, folder)
    assert target.read_bytes() == CONTENT
    target.write_bytes(b"my own")
    history.take(blob, target, folder)
    assert target.read_bytes() == b"my own"


def test_a_shallow_clone_says_what_brings_it(repository: tuple[Path, str], tmp_path: Path) -> None:
    folder, blob = repository
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth", "1", folder.as_uri(), str(shallow))
    target = tmp_path / "model.bin"
    with pytest.raises(FileNotFoundError, match="git fetch --unshallow"):
        history.take(blob, target, shallow)
    assert not list(tmp_path.glob("model.bin*"))
    git(shallow, "fetch", "-q", "--unshallow")
    history.take(blob, target, shallow)
    assert target.read_bytes() == CONTENT


def test_a_folder_without_history_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(FileNotFoundError, match="Clone the repository with git"):
        history.take(small_model.SHAPES_BLOB, tmp_path / "model.bin", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_git_the_same_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="Clone the repository with git"):
        history.take(small_model.SHAPES_BLOB, tmp_path / "model.bin", tmp_path)


def test_another_model_that_is_missing_is_named(tmp_path: Path) -> None:
    assert "other.safetensors" in small_model.why_missing(tmp_path / "other.safetensors")
