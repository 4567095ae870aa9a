"""Imports run one way: a module may use only the modules above it in ``ORDER``."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

import layerfuse

PACKAGE = "layerfuse"
SOURCE = Path(layerfuse.__file__).parent
ORDER = (
    "_version",
    "errors",
    "progress",
    "files",
    "parallel",
    "tabular",
    "metrics",
    "targets",
    "figures",
    "pooling",
    "blocks",
    "resources",
    "config",
    "data",
    "encoders",
    "embeddings",
    "probing",
    "selection",
    "complementarity",
    "calibration",
    "heads",
    "fusion",
    "pipeline",
    "model_selection",
    "evaluation",
    "bundle",
    "classifier",
    "study",
    "report",
    "commands",
    "cli",
    "__main__",
)
# Narrower than the order: settings and costs are plain data.
ONLY: dict[str, set[str]] = {"config": set(), "resources": {"errors", "blocks"}}


def modules(root: Path) -> dict[str, Path]:
    """Dotted name inside the package -> file; a package goes by its folder, the front by ``""``."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: Mapping[str, Path]) -> Iterator[tuple[str, int]]:
    """Modules of the package that one file imports at any depth, with the line.

    The front is yielded as ``""``. Its dunders (``__version__``) are free to all.
    """

    def module(dotted: str) -> str | None:
        """Without the package's own name; None for somebody else's module."""
        head, _, tail = dotted.partition(".")
        return tail if head == PACKAGE else None

    here = [PACKAGE, *name.split(".")] if name else [PACKAGE]
    if path.name != "__init__.py":
        here = here[:-1]  # the package that relative imports start from
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                target = module(alias.name)
                if target is not None:
                    yield target, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            target = module(".".join([*base, *filter(None, [node.module])]))
            if target is None:
                continue
            for alias in node.names:
                child = f"{target}.{alias.name}".lstrip(".")
                if child in known:
                    yield child, node.lineno
                elif target or not alias.name.startswith("__"):
                    yield target, node.lineno
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func
            called = called.id if isinstance(called, ast.Name) else called
            text = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
            if called in {"import_module", "__import__"} and isinstance(text, str):
                target = module(text)
                if target is not None:
                    yield target, node.lineno


def faults(
    root: Path, order: Sequence[str], only: Mapping[str, set[str]] | None = None
) -> list[str]:
    """Everything under ``root`` that goes against the order, one sentence each."""
    only = only or {}
    rank = {name: place for place, name in enumerate(order)}
    known = modules(root)
    found = [f"{name} is not in the list" for name in known if name.split(".")[0] not in rank]
    found.remove(" is not in the list")  # the front is above all and below none
    edges: dict[str, set[str]] = {}
    for name, path in known.items():
        top = name.split(".")[0]
        if top not in rank:
            continue
        for target, line in imports(name, path, known):
            where = f"{path.relative_to(root).as_posix()}:{line}"
            target_top = target.split(".")[0]
            if not target:
                found.append(f"{where} imports the front")
            elif target_top not in rank:
                found.append(f"{where} imports {target_top}, which is not in the list")
            elif rank[target_top] > rank[top]:
                found.append(f"{where} imports {target_top}, which stands below {top}")
            elif top in only and target_top not in {top, *only[top]}:
                found.append(f"{where} imports {target_top}; {top} may not")
            else:
                edges.setdefault(name, set()).add(target)
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        found.append("cycle: " + " <- ".join(error.args[1]))
    return found


def test_imports_run_one_way():
    assert faults(SOURCE, ORDER, ONLY) == []


def test_the_list_holds_no_module_that_is_gone():
    assert [name for name in ORDER if name not in modules(SOURCE)] == []


def tree(root: Path, **files: str) -> Path:
    """A made-up package; ``a__b`` stands for ``a/b.py``."""
    for name, text in {"__init__": "", **files}.items():
        parts = [name] if name.startswith("__") else name.replace("__", "/", 1).split("/")
        parts = [part or "__init__" for part in parts]
        path = root.joinpath(*parts).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_a_clean_tree_passes(tmp_path: Path):
    root = tree(
        tmp_path,
        __init__="from layerfuse.high import thing",  # the front may name everything
        low="import numpy\nfrom layerfuse import __version__",
        pack__="from layerfuse.pack.one import x\nfrom layerfuse.pack import two",
        pack__one="from layerfuse.pack.two import y\nfrom layerfuse.low import z",
        pack__two="import os.path",
        high="from layerfuse.pack import one\nimport layerfuse.low",
    )
    assert faults(root, ["low", "pack", "high"]) == []


@pytest.mark.parametrize(
    "statement",
    [
        "from layerfuse.high import x",
        "from layerfuse import high",
        "import layerfuse.high",
        "import layerfuse.high as h",
        "from . import high",
        "from .high import x",
        "def f():\n    from layerfuse.high import x",
        "if TYPE_CHECKING:\n    from layerfuse.high import x",
        "import importlib\nimportlib.import_module('layerfuse.high')",
    ],
)
def test_an_upward_import_is_caught(tmp_path: Path, statement: str):
    root = tree(tmp_path, low=statement, high="")
    (fault,) = faults(root, ["low", "high"])
    line = statement.count("\n") + 1
    assert fault == f"low.py:{line} imports high, which stands below low"


def test_an_upward_import_out_of_a_sub_package_is_caught(tmp_path: Path):
    root = tree(tmp_path, pack__="", pack__one="from ..high import x", high="")
    assert faults(root, ["pack", "high"]) == ["pack/one.py:1 imports high, which stands below pack"]


def test_a_cycle_inside_a_sub_package_is_caught(tmp_path: Path):
    root = tree(
        tmp_path,
        pack__="",
        pack__one="def f():\n    from layerfuse.pack.two import x",
        pack__two="from layerfuse.pack import one",
    )
    (fault,) = faults(root, ["pack"])
    assert fault in {
        "cycle: pack.one <- pack.two <- pack.one",
        "cycle: pack.two <- pack.one <- pack.two",
    }


def test_a_part_that_imports_its_own_package_is_a_cycle(tmp_path: Path):
    root = tree(
        tmp_path,
        pack__="from layerfuse.pack.one import x",
        pack__one="from layerfuse.pack import name",
    )
    (fault,) = faults(root, ["pack"])
    assert fault.startswith("cycle: pack")


def test_a_module_missing_from_the_list_is_caught(tmp_path: Path):
    root = tree(tmp_path, low="", stray="", high="from layerfuse.stray import x")
    assert faults(root, ["low", "high"]) == [
        "stray is not in the list",
        "high.py:1 imports stray, which is not in the list",
    ]


@pytest.mark.parametrize("statement", ["import layerfuse", "from layerfuse import load"])
def test_an_import_of_the_front_is_caught(tmp_path: Path, statement: str):
    assert faults(tree(tmp_path, low=statement), ["low"]) == ["low.py:1 imports the front"]


def test_a_module_held_to_fewer_imports_is_caught(tmp_path: Path):
    root = tree(tmp_path, low="", middle="", high="import layerfuse.low\nimport layerfuse.middle")
    assert faults(root, ["low", "middle", "high"], {"high": {"low"}}) == [
        "high.py:2 imports middle; high may not"
    ]
