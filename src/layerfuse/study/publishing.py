"""From raw results to tables, figures and the page: nothing is measured here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layerfuse.errors import require
from layerfuse.files import atomic_write
from layerfuse.progress import SILENT, Reporter
from layerfuse.study.evidence import Evidence
from layerfuse.study.page import claims_of, write_page
from layerfuse.study.tables import write_tables

__all__ = ["page_of", "publish"]

_FIGURES = "figures"


def _check_figures() -> None:
    """Raise MissingExtraError when figures cannot be drawn."""
    for module in ("altair", "vl_convert"):
        require(module, "report", "Drawing figures")


def publish(
    folder: Path, *, figures: bool = True, reporter: Reporter = SILENT
) -> list[dict[str, Any]]:
    """Write ``tables/*.csv``, ``figures/*.svg`` and ``*.png``, and ``summary.md`` into a results
    folder; return the claims.

    Raises
    ------
    NotFoundError, FormatError
        When the folder's raw results are incomplete or damaged.
    MissingExtraError
        When figures are asked for and cannot be drawn.
    """
    evidence = Evidence.read(folder)
    write_tables(evidence, folder / "tables")
    if figures:
        _check_figures()
        from layerfuse.study.drawing import draw_all

        draw_all(evidence, folder / _FIGURES)
    with atomic_write(folder / "summary.md") as temporary:
        temporary.write_text(page_of(folder, "."), encoding="utf-8")
    reporter.note(f"wrote {folder / 'summary.md'}")
    return [claim.to_dict() for claim in claims_of(evidence)]


def page_of(folder: Path, place: str) -> str:
    """The page of a results folder; ``place`` is the folder's path from where the page lies."""
    figures = sorted(path.stem for path in (folder / _FIGURES).glob("*.svg"))
    return write_page(Evidence.read(folder), place, figures)
