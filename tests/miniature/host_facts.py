"""Lists the functions, classes, attributes and settings of the webui that the extension uses, and describes them.

For example, a function is described by the names of its parameters. The descriptions come from the source code of a
webui, which is parsed and not imported. `python tests/miniature/host_facts.py DIR` updates host_facts.json from the
webui in DIR.
"""

from __future__ import annotations

import ast
import json
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
MINIATURE = REPOSITORY / "trial" / "webui"
"""The folder of the stand-in for the webui."""
FACTS = Path(__file__).with_name("host_facts.json")
"""The file with the descriptions from a real webui."""

PROCESSING = ("processing.StableDiffusionProcessingTxt2Img", "processing.StableDiffusionProcessingImg2Img")
SAMPLERS = ("sd_samplers_kdiffusion.KDiffusionSampler", "sd_samplers_timesteps.CompVisSampler")
ROLES = {
    "p": PROCESSING,
    "self._p": PROCESSING,
    "ps": ("scripts.PostSampleArgs",),
    "processed": ("processing.Processed",),
    "sampler": SAMPLERS,
    "script": ("scripts.Script",),
    "state": ("shared.state",),
    "shared.state": ("shared.state",),
    "shared.total_tqdm": ("shared.total_tqdm",),
    "denoiser": ("sd_samplers_cfg_denoiser.CFGDenoiser",),
    "model": ("sd_samplers_cfg_denoiser.CFGDenoiser",),
}
"""Maps the name of a variable in the extension's code to the classes of the webui that its value may have.

Every attribute of the variable that the extension uses is defined in at least one of these classes.
"""

INSTANCES = {"shared.state": "State", "shared.total_tqdm": "TotalTQDM"}
"""Maps a variable of the webui to the name of its class. The class can be in any module of the webui."""

OPTIONS = "shared.opts"
"""The object with the values of the webui's settings."""
SUBCLASSED = ("sd_samplers_cfg_denoiser.CFGDenoiser.forward", "sd_samplers_cfg_denoiser.CFGDenoiser.inner_model")
"""Members of the webui's classes that the extension overrides in a subclass which it creates at run time.

`symbols` cannot find such a subclass in the source code. The subclass also overrides `get_pred_x0`, which is not
checked.
"""


def parse(path: Path) -> ast.Module:
    """Returns the syntax tree of a file."""
    with warnings.catch_warnings():
        # newer versions of Python warn about escapes in the webui's own strings
        warnings.simplefilter("ignore")
        return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def host_files() -> list[Path]:
    """Returns the extension's files that use the code of AUTOMATIC1111's webui.

    The backend for Forge's family is excluded, because it uses the code of other webuis.
    """
    folders = (REPOSITORY / "lib_demofusion" / "host", REPOSITORY / "scripts")
    files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    return [path for path in files if not (path.parent.name == "backends" and path.stem.startswith("forge"))]


def dotted(node: ast.AST) -> str | None:
    """Returns the text of an expression such as `a.b.c`. Returns None for any other kind of expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else None
    return None


def imported(tree: ast.Module) -> dict[str, str]:
    """Maps each name that a file imports from the webui to the imported module or symbol, without `modules.`."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "modules":
            prefix = node.module.removeprefix("modules").lstrip(".")
            for alias in node.names:
                names[alias.asname or alias.name] = f"{prefix}.{alias.name}".lstrip(".")
    return names


def own_names(tree: ast.Module) -> set[str]:
    """Returns the names in a file that belong to the extension and not to the webui.

    These are the names that the file imports from the extension, and the attributes that the file sets on `self`. Each
    attribute is returned as `script->attribute`. The reason is that functions in other files have a parameter `script`
    for the extension's own script, and use the attributes that the script's class sets on `self`. The webui's class
    Script does not have these attributes, so `used` must leave them out.
    """
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lib_demofusion"):
            names |= {alias.asname or alias.name for alias in node.names}
        for target in targets(node):
            if isinstance(target, ast.Attribute) and dotted(target.value) == "self":
                names.add(f"script->{target.attr}")
    return names


def symbols(tree: ast.Module) -> Iterator[str]:
    """Yields the symbols of the webui that a file of the extension uses.

    The symbols have the form `module.name`, `module.Class.member`, `shared.opts.setting`, or `variable->attribute` for
    a variable in ROLES. Attributes whose names begin with an underscore are left out.
    """
    names = imported(tree)
    own = own_names(tree)
    yield from (target for target in names.values() if "." in target)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                target = dotted(base) or ""
                head, _, rest = target.partition(".")
                if head in names:
                    members = (entry.name for entry in node.body if isinstance(entry, ast.FunctionDef))
                    yield from (f"{names[head]}.{rest}.{member}" for member in members if member != "__init__")
        if not isinstance(node, ast.Attribute):
            continue
        base = dotted(node.value)
        if base is None or node.attr.startswith("_"):
            continue
        head, _, rest = base.partition(".")
        full = f"{names[head]}.{rest}".rstrip(".") if head in names else base
        if full == OPTIONS:
            yield f"{OPTIONS}.{node.attr}"
        elif full in ROLES and head not in own:
            yield f"{full}->{node.attr}"
        elif head in names and not rest:
            yield f"{names[head]}.{node.attr}"


def used() -> list[str]:
    """Returns the symbols of the webui that the extension uses, in the forms of `symbols`."""
    trees = [parse(path) for path in host_files()]
    found = {symbol for tree in trees for symbol in symbols(tree)} | set(SUBCLASSED)
    own = {name for tree in trees for name in own_names(tree)}
    return sorted(found - own - {"shared.opts", "shared.state", "shared.total_tqdm"})


def parameters(node: ast.FunctionDef) -> list[str]:
    """Returns the names of a function's parameters except self and cls.

    The names of `*args` and `**kwargs` keep their stars. A question mark follows the name of a parameter that has a
    default.
    """
    args = node.args
    plain = [arg.arg for arg in (*args.posonlyargs, *args.args)]
    required = len(plain) - len(args.defaults)
    names = [name if i < required else f"{name}?" for i, name in enumerate(plain)]
    names += [f"*{args.vararg.arg}"] if args.vararg else []
    names += [f"{arg.arg}?" if default else arg.arg for arg, default in zip(args.kwonlyargs, args.kw_defaults)]
    names += [f"**{args.kwarg.arg}"] if args.kwarg else []
    return [name for name in names if name not in ("self", "cls")]


def described(node: ast.FunctionDef) -> dict[str, Any]:
    """Describes a function by its parameters. A property is described as an attribute."""
    decorators = {dotted(entry) or "" for entry in node.decorator_list}
    if any(name == "property" or name.endswith(".setter") for name in decorators):
        return {"kind": "attribute"}
    return {"kind": "function", "parameters": parameters(node)}


def targets(node: ast.AST) -> Iterator[ast.AST]:
    """Yields the targets if `node` is an assignment. Yields nothing for other nodes."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield from target.elts if isinstance(target, ast.Tuple) else [target]
    elif isinstance(node, ast.AnnAssign):
        yield node.target


class Source:
    """The syntax trees of the files in the folder `modules` of `root`, the folder of a webui or of the stand-in."""

    def __init__(self, root: Path):
        self.trees = {path.stem: parse(path) for path in sorted((root / "modules").glob("*.py"))}

    @cache  # noqa: B019 (there are few objects, and all are used until the program ends)
    def classes(self) -> dict[str, ast.ClassDef]:
        """Maps the name of each class to its syntax tree. The extension uses no class that two files define."""
        return {n.name: n for tree in self.trees.values() for n in ast.walk(tree) if isinstance(n, ast.ClassDef)}

    def members(self, name: str) -> dict[str, dict[str, Any]]:
        """Describes the attributes and functions of a class and of its base classes."""
        node = self.classes().get(name)
        if node is None:
            return {}
        found: dict[str, dict[str, Any]] = {}
        for base in node.bases:
            found |= self.members((dotted(base) or "").rpartition(".")[2])
        for inner in ast.walk(node):
            for target in targets(inner):
                if isinstance(target, ast.Attribute) and dotted(target.value) == "self":
                    found.setdefault(target.attr, {"kind": "attribute"})
        for entry in node.body:
            for target in targets(entry):
                if isinstance(target, ast.Name):
                    alias = isinstance(entry, ast.Assign) and isinstance(entry.value, ast.Name)
                    value = found.get(entry.value.id) if alias else None
                    found[target.id] = value or {"kind": "attribute"}
            if isinstance(entry, ast.FunctionDef):
                found[entry.name] = described(entry)
        return found

    def options(self) -> set[str]:
        """Returns the names of all settings, together with some other strings.

        The webui defines its settings as entries of dicts in two files. Other keys of dicts in these files are returned
        as well. The stand-in defines its settings as keyword arguments of `options.Options`.
        """
        names = set()
        for stem in ("shared_options", "shared"):
            for node in ast.walk(self.trees.get(stem, ast.Module([], []))):
                if isinstance(node, ast.Dict):
                    names |= {key.value for key in node.keys if isinstance(key, ast.Constant)}
                elif isinstance(node, ast.Call) and dotted(node.func) == "options.Options":
                    names |= {keyword.arg for keyword in node.keywords if keyword.arg}
        return names

    def top_level(self, module: str, name: str) -> dict[str, Any] | None:
        """Describes a function, class, variable or import of a module. Returns None if the module has no such name."""
        tree = self.trees.get(module)
        for node in tree.body if tree else ():
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return described(node)
            if isinstance(node, ast.ClassDef) and node.name == name:
                init = self.members(name).get("__init__")
                return {"kind": "class", "parameters": init["parameters"] if init else None}
            if any(isinstance(target, ast.Name) and target.id == name for target in targets(node)):
                return {"kind": "attribute"}
            if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
                return {"kind": "import"}
        return None

    def fact(self, symbol: str) -> dict[str, Any] | None:
        """Describes a symbol in a form of `symbols`. Returns None if the source does not define the symbol."""
        if symbol.startswith(f"{OPTIONS}."):
            name = symbol.rpartition(".")[2]
            return {"kind": "option"} if name in self.options() else self.members("Options").get(name)
        role, arrow, attribute = symbol.partition("->")
        if arrow:
            owners = [INSTANCES.get(owner, owner.rpartition(".")[2]) for owner in ROLES[role]]
            return next((m[attribute] for m in map(self.members, owners) if attribute in m), None)
        module, name, *member = symbol.split(".")
        return self.members(name).get(member[0]) if member else self.top_level(module, name)

    def facts(self, names: list[str]) -> dict[str, Any]:
        """Maps each of the symbols `names` to its description."""
        return {name: self.fact(name) for name in names}


def main(webui: str) -> None:
    """Writes host_facts.json from the webui in the folder `webui`. Omits symbols that this webui does not define."""
    facts = {name: fact for name, fact in Source(Path(webui)).facts(used()).items() if fact}
    FACTS.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
