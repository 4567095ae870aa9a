"""How many modules and functions of the package one call passes through, counted with
``sys.setprofile`` on a fit of 400 rows with a tiny random model."""

from __future__ import annotations

import contextlib
import csv
import io
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import layerfuse

_TESTS = Path(__file__).parents[1] / "tests"
_SOURCE = str(Path(layerfuse.__file__).parent)
_N_ROWS = 400


def entered(function: Callable[[], Any]) -> tuple[set[str], set[tuple[str, str]]]:
    """Modules whose functions run during a call, in any thread, and the functions.

    Module bodies and class bodies that run on import are not counted.
    """
    modules: set[str] = set()
    functions: set[tuple[str, str]] = set()

    def hook(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(_SOURCE):
            return
        if code.co_name == "<module>" or not code.co_flags & 0x2:  # CO_NEWLOCALS: a function
            return
        name = code.co_filename.removeprefix(_SOURCE).removesuffix(".py").strip("/")
        modules.add(name.replace("/", "."))
        functions.add((name, code.co_qualname))

    threading.setprofile(hook)
    sys.setprofile(hook)
    try:
        function()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # the documented way to end it
    return modules, functions


def run() -> list[dict[str, Any]]:
    sys.path.insert(0, str(_TESTS))
    from families import save_model
    from helpers import planted
    from layerfuse import FrozenEncoder, LayerFusionClassifier
    from layerfuse.cli.app import main

    texts, labels = planted(_N_ROWS)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model = save_model("bert", root / "bert")
        table = root / "train.csv"
        with table.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *zip(texts, labels, strict=True)])
        command = ["fit", str(table), "--encoder", str(model), "--out", str(root / "run")]
        command += ["--store", str(root / "cache"), "--dtype", "float32", "--device", "cpu"]
        command += ["--quiet", "--no-report"]

        def python() -> None:
            encoder = FrozenEncoder.from_pretrained(model, dtype="float32", device="cpu")
            LayerFusionClassifier([encoder], store=root / "store").fit(texts, labels)

        def terminal() -> None:
            argv = mock.patch.object(sys, "argv", ["layerfuse", *command])
            with argv, contextlib.redirect_stdout(io.StringIO()):
                assert main() == 0

        for name, walk in (("fit(X, y)", python), ("layerfuse fit table.csv", terminal)):
            modules, functions = entered(walk)
            print(f"{name}: {len(modules)} modules, {len(functions)} functions")
            results.append(
                {"walk": name, "modules": sorted(modules), "n_functions": len(functions)}
            )
    return results
