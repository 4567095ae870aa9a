"""Whole texts that users read, in messages.md, so that a change of words is read as one.

``WRITE_MESSAGES=1 pytest -n 0 …`` writes the texts of the tests that run.
"""

from __future__ import annotations

import os
from pathlib import Path

_FILE = Path(__file__).with_name("messages.md")
_TITLE = "# What users read\n\nErrors and verdicts, whole; tests compare them.\n"


def read_messages() -> dict[str, str]:
    """Texts by their names."""
    sections = _FILE.read_text("utf-8").split("\n## ")[1:] if _FILE.exists() else []
    return dict(section.rstrip("\n").split("\n\n", 1) for section in sections)


def check_message(name: str, text: str) -> None:
    """Compare a text with the one of that name."""
    known = read_messages()
    if os.environ.get("WRITE_MESSAGES"):
        known[name] = text
        parts = [f"\n## {key}\n\n{known[key]}\n" for key in sorted(known)]
        _FILE.write_text(_TITLE + "".join(parts), "utf-8")
    assert known.get(name) == text
