"""The public front is the sum of its parts and nothing else."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
from pathlib import Path

import pytest

import layerfuse

HOME = layerfuse._HOME


def test_the_front_equals_its_parts():
    """``__all__``, the table of homes and what type checkers are told name the same things."""
    told = {
        alias.name: node.module.removeprefix("layerfuse.")
        for node in ast.walk(ast.parse(Path(layerfuse.__file__).read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("layerfuse.")
        for alias in node.names
    }
    assert told.pop("__version__") == "_version"
    assert told == HOME
    assert sorted(layerfuse.__all__) == sorted(HOME)
    assert set(layerfuse.__all__) <= set(dir(layerfuse))


@pytest.mark.parametrize("name", sorted(HOME))
def test_each_public_name_is_its_homes_own(name: str):
    home = importlib.import_module(f"layerfuse.{HOME[name]}")
    assert getattr(layerfuse, name) is getattr(home, name)


@pytest.mark.parametrize("name", sorted(HOME))
def test_each_public_name_is_documented(name: str):
    value = getattr(layerfuse, name)
    text = value.__doc__
    assert text, f"{name} has no docstring"
    if inspect.isclass(value) and dataclasses.is_dataclass(value):
        assert not text.startswith(f"{name}("), f"{name} has only what dataclasses write by itself"


def test_an_unknown_name_is_refused_as_python_does():
    with pytest.raises(AttributeError, match="module 'layerfuse' has no attribute 'nothing'"):
        _ = layerfuse.nothing


def test_the_citation_names_this_version():
    citation = Path(__file__).parents[1] / "CITATION.cff"
    assert f"\nversion: {layerfuse.__version__}\n" in citation.read_text(encoding="utf-8")
