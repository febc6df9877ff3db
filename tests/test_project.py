"""Checks rules for the source code: imports, Python 3.10, lengths, number of parameters, module state and print()."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
CORE = REPOSITORY / "lib_demofusion"
HOST = CORE / "host"

OLDEST_PYTHON = (3, 10)
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 40
MAX_PROGRESS_LINES = 250
MAX_PARAMETERS = 5
WEBUI_PACKAGES = {"modules", "gradio"}
FORGE_PACKAGES = {"modules_forge", "backend", "huggingface_guess"}
"""Packages that exist only in Forge, reForge or Forge Neo."""
BACKENDS = HOST / "backends"
"""The only folder in which code may name Forge, reForge or Forge Neo."""
RUNTIME_PACKAGES = {"torch", "gradio", "numpy", "PIL", "modules", "psutil", "lib_demofusion"}


def runtime_files() -> list[Path]:
    """Returns all Python files that run inside the webui."""
    return [path for folder in (CORE, REPOSITORY / "scripts") for path in sorted(folder.rglob("*.py"))]


def core_files() -> list[Path]:
    """Returns the files that must work without a webui."""
    return [path for path in runtime_files() if path.is_relative_to(CORE) and not path.is_relative_to(HOST)]


def parse(path: Path) -> ast.Module:
    """Returns the syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def place(path: Path, line: int) -> str:
    """Formats a file and a line as `path:line`, which editors can open."""
    return f"{path.relative_to(REPOSITORY).as_posix()}:{line}"


def imported_packages(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yields the top-level package and the line of every absolute import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0], node.lineno


def host_imports(tree: ast.AST) -> Iterator[int]:
    """Yields the lines that import lib_demofusion.host or one of its modules, absolutely or relatively."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module or ''}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        if any(name.removeprefix("lib_demofusion").strip(".").split(".")[0] == "host" for name in names):
            yield node.lineno


def functions(tree: ast.AST) -> Iterator[tuple[str, int, int]]:
    """Yields the name, the first line and the number of lines of every function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1


def parameters(tree: ast.AST) -> Iterator[tuple[str, int, int]]:
    """Yields the name, the first line and the number of parameters of every function.

    `self`, `cls`, `*args` and `**kwargs` do not count.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            yield node.name, node.lineno, sum(argument.arg not in ("self", "cls") for argument in named)


def prints(tree: ast.AST) -> Iterator[int]:
    """Yields the lines that call print()."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield node.lineno


def test_core_does_not_import_the_webui() -> None:
    found = [
        f"{place(path, line)} imports {package}"
        for path in core_files()
        for package, line in imported_packages(parse(path))
        if package in WEBUI_PACKAGES
    ]
    assert found == []


def test_core_does_not_import_the_host_layer() -> None:
    found = [place(path, line) for path in core_files() for line in host_imports(parse(path))]
    assert found == []


def test_runtime_imports_only_packages_that_the_webui_has() -> None:
    allowed = RUNTIME_PACKAGES | sys.stdlib_module_names
    found = [
        f"{place(path, line)} imports {package}"
        for path in runtime_files()
        for package, line in imported_packages(parse(path))
        if package not in allowed | (FORGE_PACKAGES if path.is_relative_to(BACKENDS) else set())
    ]
    assert found == []


FORGE_NAMED = re.compile("forge(?!t)", re.IGNORECASE)
"""Matches names such as Forge, reForge and forge_objects, but not the word "forget"."""


def words(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yields variables, attributes, strings and the names in `from` imports of a file, each with its line.

    Docstrings, and the names of functions, classes and parameters, are left out.
    """
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute):
            yield node.attr, node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value, node.lineno
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module} {alias.name}", node.lineno) for alias in node.names)


def test_only_the_folder_backends_names_forge() -> None:
    found = [
        f"{place(path, line)}: {word}"
        for path in runtime_files()
        if not path.is_relative_to(BACKENDS)
        for word, line in words(parse(path))
        if FORGE_NAMED.search(word)
    ]
    assert found == []


@pytest.mark.parametrize("source", ["if forge: pass", "x.forge_objects", "hasattr(x, 'forge')", "from a import forge"])
def test_names_of_forge_are_detected(source: str) -> None:
    assert any(FORGE_NAMED.search(word) for word, _ in words(ast.parse(source)))


def folder_imports() -> dict[str, set[str]]:
    """Returns the other folders of lib_demofusion that the files of each folder import from."""
    imports: dict[str, set[str]] = {}
    for path in sorted(CORE.rglob("*.py")):
        own = path.parent.relative_to(REPOSITORY).as_posix()
        for node in ast.walk(parse(path)):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("lib_demofusion"):
                continue
            module = REPOSITORY / (node.module or "").replace(".", "/")
            for name in (alias.name for alias in node.names):
                if module.with_suffix(".py").is_file():
                    folder = module.parent
                else:
                    folder = module / name if (module / name).is_dir() else module
                imports.setdefault(own, set()).add(folder.relative_to(REPOSITORY).as_posix())
    return {own: others - {own} for own, others in imports.items()}


def test_imports_between_folders_have_no_cycle() -> None:
    imports, order = folder_imports(), []
    assert "lib_demofusion/host/common" in imports["lib_demofusion/host/sampling"]
    while imports:
        free = [own for own, others in imports.items() if not others & imports.keys()]
        assert free, f"the imports between these folders have a cycle: {sorted(imports)}"
        order += free
        imports = {own: others for own, others in imports.items() if own not in free}
    assert order.index("lib_demofusion/method") < order.index("lib_demofusion/host")


def module_imports() -> dict[str, set[str]]:
    """Returns the other modules of lib_demofusion that each module imports."""
    paths = {".".join(path.relative_to(REPOSITORY).with_suffix("").parts): path for path in CORE.rglob("*.py")}
    paths = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    imports: dict[str, set[str]] = {}
    for name, path in paths.items():
        nodes = [node for node in ast.walk(parse(path)) if isinstance(node, ast.ImportFrom) and node.module in paths]
        full = [(node.module, f"{node.module}.{alias.name}") for node in nodes for alias in node.names]
        imports[name] = {longer if longer in paths else module or "" for module, longer in full} - {name}
    return imports


def test_imports_between_modules_have_no_cycle() -> None:
    """Imports inside functions and below TYPE_CHECKING count too."""
    imports = module_imports()
    assert "lib_demofusion.settings.presets" in imports["lib_demofusion.settings.spec"]
    assert "lib_demofusion.host.backends.forge" in imports["lib_demofusion.host.backends"]
    while free := {name for name, others in imports.items() if not others & imports.keys()}:
        imports = {name: others for name, others in imports.items() if name not in free}
    while unused := imports.keys() - set().union(*imports.values()):
        imports = {name: others for name, others in imports.items() if name not in unused}
    assert sorted(imports) == [], "the imports between these modules have a cycle"


def test_the_oldest_supported_python_can_parse_all_files() -> None:
    for path in runtime_files():
        ast.parse(path.read_text(encoding="utf-8"), filename=str(path), feature_version=OLDEST_PYTHON)


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in runtime_files()}
    assert [place(path, length) for path, length in lengths.items() if length > MAX_FILE_LINES] == []


def test_the_code_for_the_progress_bar_is_short() -> None:
    """The progress bar does not affect images, so its code must stay a small part of the source."""
    files = ("host/progress/bar.py", "host/progress/timing.py")
    lines = sum(len((CORE / name).read_text(encoding="utf-8").splitlines()) for name in files)
    assert lines <= MAX_PROGRESS_LINES


@pytest.mark.parametrize(("measure", "limit"), [(functions, MAX_FUNCTION_LINES), (parameters, MAX_PARAMETERS)])
def test_functions_are_short_and_have_few_parameters(
    measure: Callable[[ast.AST], Iterator[tuple[str, int, int]]], limit: int
) -> None:
    found = [
        f"{place(path, line)} {name}: {number} of {limit}"
        for path in runtime_files()
        for name, line, number in measure(parse(path))
        if number > limit
    ]
    assert found == []


COLLECTIONS = (ast.Dict, ast.List, ast.Set, ast.DictComp, ast.ListComp, ast.SetComp)
CONSTRUCTORS = {"dict", "list", "set", "defaultdict", "deque", "OrderedDict", "Counter", "WeakKeyDictionary"}
CHANGING_METHODS = {
    *("append", "extend", "insert", "remove", "pop", "clear", "add", "discard", "update", "setdefault", "popitem"),
    *("sort", "reverse", "appendleft", "popleft"),
}


def module_state(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yields every name that a function declares `global`, and every module-level collection that the code changes.

    A change is an assignment to an item, a deletion of an item, or a call of a method such as `append`. A name is
    yielded once per change or declaration, with the line.
    """
    collections = set()
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            value = node.value
            called = value.func if isinstance(value, ast.Call) else None
            constructor = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", None)
            if isinstance(value, COLLECTIONS) or constructor in CONSTRUCTORS:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                collections |= {target.id for target in targets if isinstance(target, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield from ((name, node.lineno) for name in node.names)
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            yield from ((name, node.lineno) for name in collections & {getattr(node.value, "id", None)})
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGING_METHODS:
            yield from ((name, node.lineno) for name in collections & {getattr(node.func.value, "id", None)})


def test_no_module_has_mutable_state() -> None:
    found = [f"{place(path, line)} {name}" for path in runtime_files() for name, line in module_state(parse(path))]
    assert found == []


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("a: dict[str, int] = {}\ndef f():\n    a['b'] = 1", ["a"]),
        ("a = set()\ndef f():\n    a.add(1)", ["a"]),
        ("import x\na = x.deque()\ndef f():\n    a.popleft()\n    del a[0]", ["a", "a"]),
        ("a = 1\ndef f():\n    global a\n    a = 2", ["a"]),
        ("a = {'b': 1}\ndef f():\n    return a['b'], a.get('b'), {**a}", []),
        ("def f():\n    a = []\n    a.append(1)", []),
    ],
)
def test_mutable_state_is_detected(source: str, names: list[str]) -> None:
    assert [name for name, _ in module_state(ast.parse(source))] == names


def test_nothing_is_printed() -> None:
    found = [place(path, line) for path in runtime_files() for line in prints(parse(path))]
    assert found == []


@pytest.mark.parametrize(
    ("source", "packages"),
    [
        ("import torch.nn.functional as F, os.path", ["torch", "os"]),
        ("from modules.processing import Processed", ["modules"]),
        ("def late():\n    import gradio as gr", ["gradio"]),
        ("from . import views\nfrom .host import panel\nfrom ..x import y", []),
    ],
)
def test_imports_are_detected(source: str, packages: list[str]) -> None:
    assert [package for package, _ in imported_packages(ast.parse(source))] == packages


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("from .host import panel", [1]),
        ("from . import host", [1]),
        ("from .host.panel import build", [1]),
        ("from lib_demofusion import host", [1]),
        ("from lib_demofusion.host import panel", [1]),
        ("import lib_demofusion.host.panel.build", [1]),
        ("from .settings import host", []),
        ("from lib_demofusion.method.views import hosts\nimport lib_demofusion", []),
    ],
)
def test_imports_of_the_host_layer_are_detected(source: str, lines: list[int]) -> None:
    assert list(host_imports(ast.parse(source))) == lines


def test_parameters_are_counted() -> None:
    tree = ast.parse(
        "class A:\n    def f(self, a, /, b, *rest, c=1, **more): ...\n    @classmethod\n    def g(cls): ...\n"
    )
    assert list(parameters(tree)) == [("f", 2, 3), ("g", 4, 0)]


def test_lengths_and_prints_are_detected() -> None:
    tree = ast.parse("class A:\n    @staticmethod\n    async def f():\n        print(1)\n        log.print(2)\n")
    assert list(functions(tree)) == [("f", 3, 3)]
    assert list(prints(tree)) == [4]
