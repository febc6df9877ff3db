"""Tests install.py, which prints one line if the webui lacks the hook `post_sample`. install.py must never fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import install

REPOSITORY = Path(__file__).resolve().parent.parent

OLD_SCRIPTS = "class Script:\n    def postprocess(self, p, processed, *args):\n        pass\n"
NEW_SCRIPTS = "class Script:\n    def post_sample(self, p, ps: PostSampleArgs, *args):\n        pass\n"


def make_webui(root: Path, scripts: str) -> Path:
    """Creates the folder of a webui with only modules/scripts.py, whose text is `scripts`. Returns the folder."""
    (root / "modules").mkdir(parents=True)
    (root / "modules" / "scripts.py").write_text(scripts, encoding="utf-8")
    return root


def run_installer(path: Path, module_path: str) -> subprocess.CompletedProcess[str]:
    """Runs the install.py at `path` in a separate process, as the webui does. `module_path` is the PYTHONPATH.

    Returns the finished process with the exit code and the output.
    """
    environment = {**os.environ, "PYTHONPATH": module_path}
    return subprocess.run(
        [sys.executable, str(path)], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize(("scripts", "output"), [(OLD_SCRIPTS, install.NOTICE + "\n"), (NEW_SCRIPTS, "")])
def test_only_a_webui_without_the_hook_gets_the_notice(tmp_path: Path, scripts: str, output: str) -> None:
    webui = make_webui(tmp_path / "a webui", scripts)
    result = run_installer(REPOSITORY / "install.py", str(webui))
    assert (result.returncode, result.stdout, result.stderr) == (0, output, "")


def test_install_finds_the_webui_that_contains_the_extensions_folder(tmp_path: Path) -> None:
    extension = make_webui(tmp_path, OLD_SCRIPTS) / "extensions" / "demofusion"
    extension.mkdir(parents=True)
    shutil.copy(REPOSITORY / "install.py", extension)
    result = run_installer(extension / "install.py", "")
    assert (result.returncode, result.stdout, result.stderr) == (0, install.NOTICE + "\n", "")


def test_the_notice_is_one_ascii_line() -> None:
    assert install.NOTICE.isascii()
    assert len(install.NOTICE.splitlines()) == 1


def test_only_the_first_webui_that_exists_is_checked(tmp_path: Path) -> None:
    new = make_webui(tmp_path / "new", NEW_SCRIPTS)
    old = make_webui(tmp_path / "old", OLD_SCRIPTS)
    assert not install.webui_lacks_hook([tmp_path / "absent", new, old])
    assert install.webui_lacks_hook([tmp_path / "absent", old, new])


@pytest.mark.parametrize(
    "scripts",
    ["", "# def post_sample( is not here\n", "post_sample = None\n", "import os\n\ndef post_sample(p):\n    pass\n"],
)
def test_comments_variables_and_module_functions_do_not_count_as_the_hook(tmp_path: Path, scripts: str) -> None:
    assert install.webui_lacks_hook([make_webui(tmp_path, scripts)])


def test_a_file_that_is_not_valid_utf_8_is_searched_too(tmp_path: Path) -> None:
    webui = make_webui(tmp_path, "")
    (webui / "modules" / "scripts.py").write_bytes(b"\xff\xfe\x00 class Script:\n    def post_sample(self): ...\n")
    assert not install.webui_lacks_hook([webui])


def test_missing_files_and_invalid_paths_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "modules" / "scripts.py").mkdir(parents=True)
    assert not install.webui_lacks_hook([tmp_path, tmp_path / "absent", Path("\0")])


def test_a_file_that_cannot_be_read_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*args: object, **kwargs: object) -> str:
        raise PermissionError("denied")

    monkeypatch.setattr(Path, "read_text", deny)
    assert not install.webui_lacks_hook([make_webui(tmp_path, OLD_SCRIPTS)])
