"""Compares the functions, classes and attributes of the webui that the extension uses with those of the stand-in.

The stand-in (trial/webui) replaces the webui in tests. Functions must have the same parameters in both.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import host_facts
import pytest

from lib_demofusion.host.integrations.layer_patches import NEEDS_ONE_CALL

USED = host_facts.used()
UPDATE = "To update host_facts.json, run: python tests/miniature/host_facts.py DIR (the folder of a webui)"


@pytest.fixture(scope="session")
def committed() -> dict[str, Any]:
    """Returns host_facts.json, which describes the used symbols as they are in AUTOMATIC1111's webui 1.10.1."""
    return json.loads(host_facts.FACTS.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def miniature() -> dict[str, Any]:
    """Returns descriptions of all symbols that the extension uses. The descriptions come from the stand-in's source."""
    return host_facts.Source(host_facts.MINIATURE).facts(USED)


@pytest.mark.parametrize("symbol", USED)
def test_host_facts_contain_every_symbol_that_the_extension_uses(symbol: str, committed: dict[str, Any]) -> None:
    assert symbol in committed, f"host_facts.json does not contain {symbol}. {UPDATE}"


@pytest.mark.parametrize("symbol", USED)
def test_the_stand_in_has_the_signatures_in_host_facts(
    symbol: str, committed: dict[str, Any], miniature: dict[str, Any]
) -> None:
    assert miniature[symbol] == committed.get(symbol)


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> Path:
    """Returns the folder of an installed webui. Skips the test if there is none."""
    folder = request.config.getoption("--webui")
    if not folder:
        pytest.skip("no webui: use --webui DIR or set SD_WEBUI_DIR")
    return Path(folder)


@pytest.mark.webui
def test_host_facts_equal_the_descriptions_of_an_installed_webui(committed: dict[str, Any], folder: Path) -> None:
    assert host_facts.Source(folder).facts(sorted(committed)) == committed


@pytest.mark.webui
def test_the_webui_has_the_settings_that_a_message_names(folder: Path) -> None:
    source = (folder / "modules" / "shared_options.py").read_text(encoding="utf-8")
    names = re.findall('"[^"]+"', NEEDS_ONE_CALL)
    assert names
    assert [name for name in names if name not in source] == []


SOURCE = """
class Base:
    plain: int = 0
    alias = plain
    def __init__(self, x, y=1):
        self.a, self.b = x, y
    @property
    def size(self): ...
class Child(Base):
    def call(self, one, *rest, two=2, **more): ...
def function(a, b=None, *, c, d=1): ...
variable = 3
"""


@pytest.fixture
def example(tmp_path: Path) -> host_facts.Source:
    """Returns a `modules` package with one module: `example`, whose source code is SOURCE."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "example.py").write_text(SOURCE, encoding="utf-8")
    return host_facts.Source(tmp_path)


@pytest.mark.parametrize(
    ("symbol", "fact"),
    [
        ("example.function", {"kind": "function", "parameters": ["a", "b?", "c", "d?"]}),
        ("example.variable", {"kind": "attribute"}),
        ("example.Child", {"kind": "class", "parameters": ["x", "y?"]}),
        ("example.Child.call", {"kind": "function", "parameters": ["one", "*rest", "two?", "**more"]}),
        ("example.Child.size", {"kind": "attribute"}),
        ("example.Child.b", {"kind": "attribute"}),
        ("example.Child.alias", {"kind": "attribute"}),
        ("example.Child.missing", None),
        ("example.missing", None),
        ("missing.function", None),
    ],
)
def test_a_symbol_is_described_from_its_source(
    example: host_facts.Source, symbol: str, fact: dict[str, Any] | None
) -> None:
    assert example.fact(symbol) == fact


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from modules import devices\ndevices.cpu", {"devices.cpu"}),
        ("from modules.rng import ImageRNG", {"rng.ImageRNG"}),
        ("from modules import shared\nshared.opts.x", {"shared.opts.x", "shared.opts"}),
        ("from modules import shared\nshared.state.y", {"shared.state->y", "shared.state"}),
        ("def f(p): return p.seeds, p._own", {"p->seeds"}),
        ("from modules import rng\nclass A(rng.B):\n    def f(self, x): ...", {"rng.B", "rng.B.f"}),
        ("from lib_demofusion.host import denoiser\ndenoiser.attach", set()),
        ("import torch\ntorch.cat", set()),
    ],
)
def test_symbols_of_the_webui_are_found_in_source(source: str, found: set[str]) -> None:
    assert set(host_facts.symbols(host_facts.ast.parse(source))) == found
