"""The results folder: each unit of work is one file, measured once and never half written."""

from __future__ import annotations

import contextlib
import json
import platform
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.common import cpu
from layerfuse._version import __version__
from layerfuse.errors import FormatError
from layerfuse.files import atomic_write, digest
from layerfuse.progress import Reporter

_PACKAGES = ("torch", "transformers", "scikit-learn", "numpy")


class Results:
    """A study's folder; units lie in ``raw/NAME.json`` with the settings that they hold for."""

    def __init__(self, folder: Path, reporter: Reporter) -> None:
        self.folder = folder
        self.names: list[str] = []
        self.reused = 0
        self._reporter = reporter

    def unit(
        self, name: str, settings: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """The result of a unit: read where it is there with the same settings, else made.

        ``settings`` name everything that changes the result. What is returned has been through the
        file, so that a resumed run and one that was never stopped see the same numbers.
        """
        self.names.append(name)
        path = unit_path(self.folder, name)
        key = digest(json.dumps(settings, sort_keys=True))
        with contextlib.suppress(FormatError):  # a damaged file is measured again
            if (stored := read_json(path)).get("key") == key:
                self.reused += 1
                return dict(stored["result"])
        self._reporter.note(f"measuring {name}")
        started = time.perf_counter()
        result = make()
        value = {
            "format": "layerfuse-study-unit",
            "format_version": 1,
            "unit": name,
            "key": key,
            "settings": settings,
            "date": datetime.now(UTC).date().isoformat(),
            "seconds": time.perf_counter() - started,
            "machine": machine(),
            "result": result,
        }
        write_json(path, value)
        return dict(read_json(path)["result"])


def unit_path(folder: Path, name: str) -> Path:
    return folder / "raw" / f"{name}.json"


@cache
def machine() -> dict[str, Any]:
    """Hardware and versions."""
    return {
        "cpu": cpu(),
        "cores": psutil.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "layerfuse": __version__,
        **{name: version(name) for name in _PACKAGES},
    }


def read_json(path: Path) -> dict[str, Any]:
    """Read a results file; a FormatError when it is missing or damaged."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise FormatError(f"{path} cannot be read: {error}. Run the study again.") from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON with floats to six digits and innermost objects and lists on one line each."""
    exact = json.dumps(value, ensure_ascii=False, allow_nan=False)
    rounded = json.loads(exact, parse_float=lambda digits: float(f"{float(digits):.6g}"))
    text = json.dumps(rounded, indent=1, ensure_ascii=False)
    text = re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda inner: re.sub(r"\n *", " ", inner[0]), text)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
