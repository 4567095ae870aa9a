"""Modules stay small enough to be read in one go."""

from __future__ import annotations

import statistics
from pathlib import Path

import layerfuse

LONGEST = 400  # lines
MEDIAN = 150  # lines

LINES = {
    path.relative_to(Path(layerfuse.__file__).parent).as_posix(): len(
        path.read_text(encoding="utf-8").splitlines()
    )
    for path in Path(layerfuse.__file__).parent.rglob("*.py")
}


def test_no_module_is_too_long():
    assert {name: lines for name, lines in LINES.items() if lines > LONGEST} == {}


def test_the_usual_module_is_short():
    assert statistics.median(LINES.values()) <= MEDIAN
