"""Tests try_demofusion.py: the setup, the comparison of images, and the files that are installed into a webui."""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from in_process import Webui
from PIL import Image
from safetensors.torch import save_file

import try_demofusion
from trial import bootstrap, compare, install_webui, small_model, text

CONFIGURATION = {"model": {"params": {"cond_stage_config": {"params": {"version": "elsewhere"}}, "scale_factor": 0.5}}}


def options(**values: Any) -> argparse.Namespace:
    """Returns the arguments of the command line that affect the images."""
    given = {"scale": 2, "prompt": "a", "seed": 1, "steps": 3, "sampler": "Euler", **values}
    return argparse.Namespace(**given)


@pytest.mark.parametrize("scale", [2, 3])
def test_images_of_every_method_are_written(webui: Webui, tmp_path: Path, scale: int) -> None:
    webui.job()
    compare.main(options(scale=scale, out=tmp_path))
    large = 128 * scale
    # with the default preset, both scales need only one stage
    stages = [f"stage-1-{128 * scale}x{128 * scale}.png"]
    ways = [f"{way}-{large}x{large}.png" for way in ("bicubic", "direct")]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(["base-128x128.png", "comparison.png", *stages, *ways])
    for name in names:
        with Image.open(tmp_path / name) as image:
            assert name == "comparison.png" or f"{image.width}x{image.height}" in name


@pytest.mark.parametrize("arguments", [["--out", "there"], ["--out=there"]])
def test_folders_in_arguments_are_relative_to_the_current_folder(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    passed_on = try_demofusion.parse(try_demofusion._absolute(arguments))
    assert passed_on.out == tmp_path / "there"


def test_a_port_in_use_is_skipped() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert bootstrap.free_port(port) != port


def test_a_missing_checkpoint_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert try_demofusion.work(try_demofusion.parse(["--checkpoint", str(tmp_path / "other.safetensors")])) == 1
    assert "other.safetensors does not exist" in capsys.readouterr().err


def test_an_unsupported_version_of_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 0))
    with pytest.raises(bootstrap.SetUpError, match=r"Python 3\.10 to 3\.13 is needed; this is 3\.9"):
        bootstrap.set_up(bootstrap.TRY)


def test_packages_are_installed_only_if_the_pinned_versions_have_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    layer = bootstrap.Layer(tmp_path / "pins.txt")
    layer.file.write_text("one==1\n", encoding="utf-8")
    installed: list[tuple[str, ...]] = []
    monkeypatch.setattr(bootstrap, "VENV", tmp_path)
    monkeypatch.setattr(bootstrap, "make_environment", lambda: None)
    monkeypatch.setattr(bootstrap, "install_torch", lambda: None)
    monkeypatch.setattr(bootstrap, "pip_install", lambda *arguments: installed.append(arguments) or True)
    for text_of_pins in ("one==1\n", "one==1\n", "one==2\n"):
        layer.file.write_text(text_of_pins, encoding="utf-8")
        bootstrap.set_up(layer)
    assert len(installed) == 2


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Returns a folder with the files by which the installer recognizes a webui."""
    for name in ("launch.py", "modules/scripts.py"):
        path = tmp_path / "webui" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "webui"


@pytest.fixture
def install(host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Returns a function that installs the extension and a checkpoint. The function returns the exit status.

    The checkpoint contains only the tensors that the installer reads.
    """
    checkpoint = tmp_path / "small.safetensors"
    head = f"{small_model.TEXT_PREFIX}text_model."
    parts = {"final_layer_norm.weight": torch.zeros(8), "encoder.layers.0.mlp.fc1.weight": torch.zeros(16, 8)}
    save_file({head + name: tensor for name, tensor in parts.items()}, str(checkpoint))
    checkpoint.with_suffix(".yaml").write_text(yaml.safe_dump(CONFIGURATION), encoding="utf-8")
    monkeypatch.setattr(text, "write_clip_folder", lambda folder, *config: folder.mkdir(parents=True, exist_ok=True))
    given = argparse.Namespace(webui=host, checkpoint=checkpoint, install_only=True)
    return lambda: install_webui.main(given)


def test_extension_and_model_can_be_installed_again(host: Path, install: Callable[[], int], tmp_path: Path) -> None:
    assert install() == 0
    extension = host / "extensions" / "sd-webui-demofusion-hires"
    (extension / "stale.py").touch()
    assert install() == 0
    assert (extension / "scripts" / "demofusion_hires.py").is_file()
    assert (extension / "lib_demofusion" / "host" / "panel" / "build.py").is_file()
    assert not (extension / "stale.py").exists()
    assert not (extension / "trial").exists()
    assert [path.name for path in (host / "extensions").iterdir()] == [extension.name]
    models = host / "models" / "Stable-diffusion"
    assert (models / "small.safetensors").read_bytes() == (tmp_path / "small.safetensors").read_bytes()
    written = yaml.safe_load((models / "small.yaml").read_text(encoding="utf-8"))["model"]["params"]
    assert written["scale_factor"] == 0.5
    assert Path(written["cond_stage_config"]["params"]["version"]) == host / "models" / "small-clip"


def test_forge_gets_only_the_extension_and_a_message_about_the_model(
    host: Path, install: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    (host / "modules_forge").mkdir()
    assert install() == 0
    assert (host / "extensions" / "sd-webui-demofusion-hires" / "scripts").is_dir()
    assert not (host / "models").exists()
    assert "Model: none" in capsys.readouterr().out


def test_a_git_clone_in_the_webui_is_not_changed(host: Path, install: Callable[[], int]) -> None:
    clone = host / "extensions" / "sd-webui-demofusion-hires"
    (clone / ".git").mkdir(parents=True)
    assert install() == 0
    assert [path.name for path in clone.iterdir()] == [".git"]


def test_a_folder_with_the_name_of_the_extension_but_other_files_is_not_overwritten(
    host: Path, install: Callable[[], int]
) -> None:
    folder = host / "extensions" / "sd-webui-demofusion-hires"
    folder.mkdir(parents=True)
    (folder / "mine.txt").touch()
    assert install() == 1
    assert (folder / "mine.txt").exists()


def test_a_folder_without_a_webui_is_refused(host: Path, install: Callable[[], int]) -> None:
    (host / "launch.py").unlink()
    assert install() == 1
    assert not (host / "extensions").exists()
