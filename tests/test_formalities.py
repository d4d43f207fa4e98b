"""What a machine can check of the project's rules: layers, public names, private PyTorch API, packaging."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import jacfn

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PYPROJECT["project"]["optional-dependencies"]

# Every module and package directly under jacfn, from the ground up. A module imports what stands before it,
# and what is in its own package.
LAYERS: dict[str, tuple[str, ...]] = {
    "L0": ("_errors", "_torch", "_tree", "_cache", "_random", "_recurrent", "_bag", "_exact", "_selection", "_binding"),
    "L1": ("_memory", "_evaluate", "_products", "functional"),
    "L2": ("dense", "quasilinear", "auto"),
    "L3": ("second_order", "_explain", "operator"),
    "L4": ("least_squares",),
    "L5": ("integrations",),
    "top": ("__init__", "_demo", "__main__"),
}
ORDER = [unit for units in LAYERS.values() for unit in units]
# May import more than the runtime dependencies: units, and single modules.
WITH_EXTRAS = {"integrations", "_demo", "__main__", "jacfn.operator.with_scipy", "jacfn.least_squares.with_scipy"}


def _modules() -> dict[str, Path]:
    """Dotted name -> file, for every module of the package."""
    files = sorted((ROOT / "jacfn").rglob("*.py"))
    dotted = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return dict(zip((name.removesuffix(".__init__") for name in dotted), files, strict=True))


MODULES = _modules()
TREES = {name: ast.parse(file.read_text(), str(file)) for name, file in MODULES.items()}


def _unit(module: str) -> str:
    """The module or package directly under jacfn to which ``module`` belongs."""
    return "__init__" if module == "jacfn" else module.split(".")[1]


def _imported(module: str) -> Iterator[str]:
    """The full name of everything that ``module`` imports, also inside functions and for type checkers."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*parents, *filter(None, [node.module])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


def _imported_modules(module: str) -> set[str]:
    """The modules of jacfn that ``module`` imports, or from which it imports a name."""
    names = {name for name in _imported(module) if name.split(".")[0] == "jacfn"}
    return {name if name in MODULES else name.rpartition(".")[0] for name in names}


# --- layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    unit = _unit(module)
    assert unit in ORDER, f"{unit} has no place in the layers: enter it in LAYERS"
    above = {other for other in _imported_modules(module) if ORDER.index(_unit(other)) > ORDER.index(unit)}
    assert not above, f"{module} imports from above: {above}"


def test_imports_have_no_cycle() -> None:
    TopologicalSorter({module: _imported_modules(module) - {module} for module in MODULES}).prepare()


@pytest.mark.parametrize("module", [module for module in MODULES if not {module, _unit(module)} & WITH_EXTRAS])
def test_library_imports_only_what_it_requires(module: str) -> None:
    required = {Requirement(line).name for line in PYPROJECT["project"]["dependencies"]}
    roots = {name.split(".")[0] for name in _imported(module)}
    assert roots <= required | set(sys.stdlib_module_names) | {"jacfn"}


# --- public names ---------------------------------------------------------------------------------


def test_all_is_what_stands_in_the_namespace() -> None:
    values = vars(jacfn).items()
    public = {name for name, value in values if name[0] != "_" and not isinstance(value, ModuleType)}
    assert public == {name for name in jacfn.__all__ if name[0] != "_"}
    assert len(set(jacfn.__all__)) == len(jacfn.__all__)


@pytest.mark.parametrize("name", jacfn.__all__)
def test_public_name_is_documented(name: str) -> None:
    value = getattr(jacfn, name)
    if isinstance(value, str):  # __version__
        return
    doc = inspect.getdoc(value) or ""
    assert value.__doc__, f"{name} has no docstring"
    assert ">>>" in doc, f"the docstring of {name} has no example"
    if inspect.isfunction(value):
        assert "\nArgs:" in doc, f"the docstring of {name} has no Args section"
        assert "\nReturns:" in doc, f"the docstring of {name} has no Returns section"
    if inspect.isclass(value):
        bare = [member for member in _own_members(value) if not inspect.getdoc(getattr(value, member))]
        assert not bare, f"members of {name} without a docstring: {bare}"


def _own_members(kind: type) -> Iterator[str]:
    for member, value in vars(kind).items():
        if member[0] != "_" and (callable(value) or isinstance(value, (property, classmethod, staticmethod))):
            yield member


def test_api_page_lists_the_public_names() -> None:
    directive = re.compile(r"^\.\. auto(?:function|class|exception|data):: (\w+)", re.MULTILINE)
    listed = directive.findall(_text("docs/api.rst"))
    assert sorted(listed) == sorted(name for name in jacfn.__all__ if name[0] != "_")


@pytest.mark.parametrize("module", MODULES)
def test_module_is_short_and_says_what_it_is(module: str) -> None:
    assert ast.get_docstring(TREES[module]), f"{module} has no docstring"
    assert len(MODULES[module].read_text().splitlines()) <= 400


def _text(path: str) -> str:
    return (ROOT / path).read_text()


# --- private PyTorch API --------------------------------------------------------------------------

# Attributes such as Tensor._version: private too, though no dotted name leads there.
PRIVATE_ATTRIBUTES = {
    name
    for owner in (torch.Tensor, torch.nn.Module(), torch.autograd.Function)
    for name in dir(owner)
    if name[0] == "_" and not name.startswith("__")
}


def _is_private(dotted: str) -> bool:
    return any(part[0] == "_" and not part.startswith("__") for part in dotted.split("."))


def _private_names(tree: ast.Module) -> set[str]:
    """Every private dotted name of torch that is imported or read, each prefix of it that is private, too."""
    aliases: dict[str, str] = {}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.add(alias.name)
                aliases[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    found |= set(aliases.values())
    found |= {name for node in ast.walk(tree) if (name := _dotted(node, aliases))}
    return {name for name in found if name.split(".")[0] == "torch" and _is_private(name)}


def _dotted(node: ast.AST, aliases: dict[str, str]) -> str | None:
    """``torch.a.b`` for the attribute chain ``alias.b``; None for anything else."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id)
    if isinstance(node, ast.Attribute) and (stem := _dotted(node.value, aliases)):
        return f"{stem}.{node.attr}"
    return None


def _private_attributes(tree: ast.Module) -> set[str]:
    """The private attributes of tensors and modules that are read from something else than self."""
    attributes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return {
        node.attr
        for node in attributes
        if node.attr in PRIVATE_ATTRIBUTES and not (isinstance(node.value, ast.Name) and node.value.id == "self")
    }


@pytest.mark.parametrize("module", [module for module in MODULES if module != "jacfn._torch"])
def test_private_torch_api_stays_in_its_module(module: str) -> None:
    assert not _private_names(TREES[module])
    assert not _private_attributes(TREES[module])


@pytest.mark.parametrize("name", jacfn._torch.PRIVATE)
def test_private_name_exists(name: str) -> None:
    assert _resolve(name) is not None, f"this PyTorch has no {name}"


def test_private_names_are_listed() -> None:
    listed = jacfn._torch.PRIVATE
    used = _private_names(TREES["jacfn._torch"])
    ends = {name for name in listed if not isinstance(_resolve(name), ModuleType)}
    known = {name for name in used if any(f"{entry}.".startswith(f"{name}.") for entry in listed)}
    known |= {name for name in used if any(name.startswith(f"{entry}.") for entry in ends)}
    assert not used - known, "enter them in PRIVATE"
    attributes = _private_attributes(TREES["jacfn._torch"])
    assert not attributes - {part for name in listed for part in name.split(".")}, "enter them in PRIVATE"
    needed = used | {name for name in listed if name.rpartition(".")[2] in attributes}
    assert not set(listed) - needed, "listed, but not used any more"


def _resolve(dotted: str) -> Any:
    """What the dotted name stands for; None where a part of it is missing."""
    parts = dotted.split(".")
    value: Any = importlib.import_module(parts[0])
    for end, part in enumerate(parts[1:], start=2):
        if not hasattr(value, part) and isinstance(value, ModuleType):
            try:
                importlib.import_module(".".join(parts[:end]))
            except ImportError:
                return None
        value = getattr(value, part, None)
    return value


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import torch._dynamo", {"torch._dynamo"}),
        (
            "from torch.utils import _pytree as p\np.tree_map",
            {"torch.utils._pytree", "torch.utils._pytree.tree_map"},
        ),
        ("import torch\ntorch._C.x", {"torch._C", "torch._C.x"}),
        ("import torch.nn.functional as F\nF._pad", {"torch.nn.functional._pad"}),
        ("from torch._functorch import vmap", {"torch._functorch.vmap"}),
        ("import torch\ntorch.func.vmap.__name__", set()),
    ],
)
def test_private_names_are_found(source: str, names: set[str]) -> None:
    assert _private_names(ast.parse(source)) == names


# --- packaging ------------------------------------------------------------------------------------


def _pins() -> dict[str, Version]:
    lines = [line for line in _text("constraints.txt").splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[^+\s]+", line) for line in lines), "exact versions, no local part"
    return {name: Version(version) for name, version in (line.split("==") for line in lines)}


def _requirements() -> list[Requirement]:
    lines = PYPROJECT["build-system"]["requires"] + PYPROJECT["project"]["dependencies"]
    requirements = {Requirement(line) for line in chain(lines, *EXTRAS.values())}
    return sorted((r for r in requirements if r.name != "jacfn"), key=str)


@pytest.mark.parametrize("requirement", _requirements(), ids=str)
def test_requirement_is_bounded_below_and_pinned(requirement: Requirement) -> None:
    pin = _pins()[canonicalize_name(requirement.name)]
    assert [clause.operator for clause in requirement.specifier] == [">="]
    assert pin in requirement.specifier


def test_wheel_says_that_it_is_typed() -> None:
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": ["jacfn"]}  # the whole folder: nothing is left out
    assert (ROOT / "jacfn" / "py.typed").is_file()


def test_version_has_an_entry_in_the_changelog() -> None:
    version = PYPROJECT["project"]["version"]
    assert re.search(rf"^## {re.escape(version)}\b", _text("CHANGELOG.md"), re.MULTILINE)
    assert getattr(jacfn, "__version__", version) == version
