"""``demo``: the whole way on real data, in minutes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from layerfuse.commands.fitting import fit
from layerfuse.config import FitConfig
from layerfuse.errors import StorageError
from layerfuse.events import Reporter

__all__ = ["demo"]

_DATA = "r8"
_ENCODERS = ("minilm", "smollm2-135m")
_MAX_LENGTH = 128  # tokens; news stories say early what they are about


def demo(out: Path, sample: int, reporter: Reporter, *, report: bool = True) -> dict[str, Any]:
    """Fit two small encoders on a stratified part of R8; replaces the folder of an older demo."""
    if out.exists():
        if not _is_demo(out):
            raise StorageError(f"{out} exists and is not a demo's folder. Choose another --out.")
        shutil.rmtree(out)
    config = FitConfig(
        data=_DATA,
        encoders=_ENCODERS,
        sample=sample,
        max_length=_MAX_LENGTH,
        out=str(out),
        report=report,
    )
    return fit(config, reporter)


def _is_demo(folder: Path) -> bool:
    """Whether its report is a demo's, and not that of a run that somebody wants to keep."""
    try:
        settings = json.loads((folder / "report.json").read_text(encoding="utf-8"))["settings"]
        return bool(settings["data"] == _DATA and tuple(settings["encoders"]) == _ENCODERS)
    except (OSError, ValueError, KeyError, TypeError):
        return False
