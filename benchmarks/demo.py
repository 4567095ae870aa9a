"""The run behind the output in the project's README: what ``layerfuse demo`` says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layerfuse.commands.fit import demo
from layerfuse.progress import SILENT

__all__ = ["run"]


def run() -> list[dict[str, Any]]:
    """The demo's report; its run folder is that of the command itself."""
    return [demo(Path("runs/demo"), 1200, SILENT).model_dump(mode="json")]
