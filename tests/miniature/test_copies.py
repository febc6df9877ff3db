"""Tests the extension in a webui in which it is installed twice, for example as the original and as a fork."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import Webui
from modules import scripts
from reports import Reports

ROOT = Path(__file__).resolve().parents[2]
TITLE = "DemoFusion Hires"


def copy_to(folder: Path) -> Path:
    """Creates `folder`, a second copy of the extension that consists of links to the Python code. Returns `folder`."""
    folder.mkdir()
    for name in ("scripts", "lib_demofusion"):
        (folder / name).symlink_to(ROOT / name, target_is_directory=True)
    return folder


def test_the_second_copy_disables_itself_and_logs_a_warning(
    webui: Webui,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    reported: Reports,
) -> None:
    reported.expect("installed twice")
    loaded = list(scripts.scripts_data)
    monkeypatch.setattr(scripts, "scripts_data", loaded)
    second = copy_to(tmp_path / "a second copy")
    scripts.load_scripts(second)
    titles = [data.script_class().title() for data in loaded]
    assert titles.count(TITLE) == 1
    (message,) = caplog.messages
    assert message.startswith(f"DemoFusion Hires is installed twice, in {ROOT} and in {second}.")
    assert f"uses the copy in {ROOT}." in message


AFTER_RELOAD = """
import sys
from pathlib import Path
import stand_in
from modules import scripts

for folder in map(Path, sys.argv[1:]):
    # "Reload UI" loads the scripts in this way; the user has disabled the first copy before the second is loaded
    scripts.scripts_data.clear()
    scripts.load_scripts(folder)
    (data,) = scripts.scripts_data
    runs = sys.modules[data.script_class.__module__]
    assert Path(runs.__file__).is_relative_to(folder), (runs, folder)
    assert not [name for name, module in sys.modules.items() if name.startswith("lib_demofusion.")
                and not Path(module.__file__).is_relative_to(folder)]
print("own modules")
"""
"""Python code that loads one copy after the other, and checks that each copy imports only its own modules."""


def test_after_the_first_copy_is_disabled_the_second_copy_imports_its_own_modules(tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        for name in ("scripts", "lib_demofusion"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n{AFTER_RELOAD}"
    done = subprocess.run([sys.executable, "-c", code, *map(str, folders)], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("own modules\n"), done.stderr
