"""``import layerfuse`` and ``--help`` stay quick: nothing heavy is loaded for either."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "sklearn", "scipy", "numpy", "pyarrow", "pydantic"}
HELP_SECONDS = 0.3

RUN_HELP = """
import contextlib, io, runpy, sys
sys.argv = ["layerfuse", *COMMAND, "--help"]
shown = io.StringIO()
with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
    runpy.run_module("layerfuse", run_name="__main__")
assert "layerfuse" in shown.getvalue().lower(), shown.getvalue()
"""


def loaded_by(code: str) -> set[str]:
    """Top-level packages in ``sys.modules`` after a fresh interpreter ran the code."""
    code += "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


def test_the_probe_sees_a_loaded_package():
    assert "numpy" in loaded_by("import numpy")


def test_importing_the_package_loads_nothing_heavy():
    loaded = loaded_by("import layerfuse")
    assert loaded & (HEAVY | {"cyclopts", "rich"}) == set()


@pytest.mark.slow
@pytest.mark.parametrize("command", [[], ["fit"], ["store", "ls"]], ids=" ".join)
def test_the_help_loads_nothing_heavy(command: list[str]):
    assert loaded_by(RUN_HELP.replace("*COMMAND", f"*{command}")) & HEAVY == set()


@pytest.mark.slow
@pytest.mark.parametrize("command", [["models", "list"], ["store", "ls"]], ids=" ".join)
def test_lists_load_nothing_that_fits(command: list[str]):
    code = RUN_HELP.replace("*COMMAND", f"*{command}").replace(', "--help"', "")
    code = code[: code.index("assert")]
    assert loaded_by(code) & {"torch", "transformers", "sklearn", "scipy", "pyarrow"} == set()


@pytest.mark.slow
def test_the_help_is_quick():
    """CPU time, the best of five: the rest is what the machine was doing."""
    seconds = []
    for _ in range(5):
        before = os.times()
        subprocess.run(
            [sys.executable, "-m", "layerfuse", "--help"], capture_output=True, check=True
        )
        after = os.times()
        used = after.children_user + after.children_system
        seconds.append(used - before.children_user - before.children_system)
    assert min(seconds) < HELP_SECONDS
