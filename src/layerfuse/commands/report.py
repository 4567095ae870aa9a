"""A run folder made into a page: ``report``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from layerfuse.commands.paths import check_new_file
from layerfuse.errors import ConfigError, MissingExtraError, require
from layerfuse.progress import Reporter

__all__ = ["check_report_extra", "report", "try_report"]

_NAME = "report.html"


def report(run: Path, out: Path | None, figures: Path | None, reporter: Reporter) -> dict[str, Any]:
    """Write a run's page to ``out`` (into the run folder by default), and its figures as SVG and
    PNG into the folder ``figures`` where one is given.

    Raises
    ------
    NotFoundError, FormatError
        When the run folder is not there or cannot be read.
    MissingExtraError
        Without the extra ``report``.
    StorageError
        When the page cannot be written.
    """
    from layerfuse.report.reading import read_run

    check_report_extra()
    started = time.perf_counter()
    found = read_run(run)
    path = run / _NAME if out is None else out
    check_new_file(path)
    if figures is not None and figures.exists() and not figures.is_dir():
        raise ConfigError(f"{figures} is not a folder. Give a folder for the figures.")
    from layerfuse.report.page import save_figures, sections_of, write_page

    sections = sections_of(found)
    write_page(found, sections, path)
    saved = [] if figures is None else save_figures(sections, figures)
    reporter.note(f"report: {path}")
    return {
        "run": str(run),
        "report": str(path),
        "n_bytes": path.stat().st_size,
        "sections": [section.id for section in sections],
        "figures": [str(figure) for figure in saved],
        "seconds": time.perf_counter() - started,
    }


def try_report(run: Path, reporter: Reporter) -> None:
    """Write the page after a fit; without the extra, say in one line how to have it."""
    try:
        report(run, None, None, reporter)
    except MissingExtraError:
        reporter.note("no report.html; for one: pip install 'layerfuse[report]'")


def check_report_extra() -> None:
    """Raise MissingExtraError when pages cannot be written."""
    for module in ("altair", "jinja2", "markdown_it", "vl_convert"):
        require(module, "report", "The HTML report")
