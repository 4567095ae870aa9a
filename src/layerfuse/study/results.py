"""The results folder: each unit of work is a file, written when it is whole, made only once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from layerfuse.errors import LayerfuseError
from layerfuse.files import atomic_write, digest, read_json
from layerfuse.progress import Reporter
from layerfuse.study.machine import machine

__all__ = ["Results", "read_units", "write_compact"]

_KIND, _VERSION = "layerfuse-study-unit", 1
_UNITS = "raw"
_WIDTH = 100  # characters of a value that stays on one line


class Results:
    """A study's folder; units lie in ``raw/NAME.json`` with the settings that they hold for."""

    def __init__(self, folder: Path, reporter: Reporter) -> None:
        self.folder = folder
        self._reporter = reporter
        self.seconds: dict[str, float] = {}
        self.reused = 0
        self.names: list[str] = []

    def unit(
        self, name: str, settings: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """The result of a unit: read where it is there with the same settings, else made.

        ``settings`` name everything that changes the result. What is returned has been through the
        file, so that a run that goes on and one that was never stopped see the same numbers.
        """
        self.names.append(name)
        path = self._path(name)
        key = digest(json.dumps(settings, sort_keys=True))
        known = self._read(path, key)
        if known is not None:
            self.reused += 1
            return known
        self._reporter.note(f"measuring {name}")
        started = time.perf_counter()
        result = make()
        self.seconds[name] = time.perf_counter() - started
        write_compact(
            path,
            {
                "format": _KIND,
                "format_version": _VERSION,
                "unit": name,
                "key": key,
                "settings": dict(settings),
                "date": datetime.now(UTC).date().isoformat(),
                "seconds": self.seconds[name],
                "machine": machine(),
                "result": dict(result),
            },
        )
        known = self._read(path, key)
        assert known is not None
        return known

    def _path(self, name: str) -> Path:
        return self.folder / _UNITS / f"{name}.json"

    def _read(self, path: Path, key: str) -> dict[str, Any] | None:
        """None also for a file that cannot be read: it is made again, not mended."""
        try:
            value = read_json(path, kind=_KIND, version=_VERSION)
        except LayerfuseError:
            return None
        found = value.get("result")
        return found if value.get("key") == key and isinstance(found, dict) else None


def read_units(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Units of a folder by name, each the whole file.

    Raises
    ------
    NotFoundError, FormatError
        When one is missing or damaged.
    """
    paths = {name: folder / _UNITS / f"{name}.json" for name in names}
    return {name: read_json(path, kind=_KIND, version=_VERSION) for name, path in paths.items()}


def write_compact(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON in which a short list or object stays on one line, floats to six digits: small
    enough to read, and to read in a diff."""
    text = "".join(_lines(_rounded(value), ""))
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {str(key): _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value


def _lines(value: Any, indent: str) -> Iterator[str]:
    flat = json.dumps(value, ensure_ascii=False, allow_nan=False)
    nested = isinstance(value, (dict, list)) and value
    if not nested or (len(flat) + len(indent) <= _WIDTH or _is_row(value)):
        yield flat
        return
    inner = indent + " "
    items = value.items() if isinstance(value, dict) else ((None, item) for item in value)
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    for number, (key, item) in enumerate(items):
        yield ("," if number else opening) + "\n" + inner
        if key is not None:
            yield f"{json.dumps(key, ensure_ascii=False)}: "
        yield from _lines(item, inner)
    yield f"\n{indent}{closing}"


def _is_row(value: Any) -> bool:
    """An object of plain values and short lists is a row of a table: one line."""
    return isinstance(value, dict) and not any(
        isinstance(item, dict) or (isinstance(item, list) and len(item) > 8)
        for item in value.values()
    )
