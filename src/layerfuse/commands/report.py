"""The HTML report of a run: ``report``."""

from __future__ import annotations

import time
from pathlib import Path

from layerfuse.commands.paths import check_new_file
from layerfuse.errors import ConfigError, MissingExtraError, require
from layerfuse.progress import Reporter
from layerfuse.report.results import CurveResult, ReportResult
from layerfuse.report.run_report import read_model, read_run_report

PAGE = "report.html"


def report(run: Path, out: Path | None, figures: Path | None, reporter: Reporter) -> ReportResult:
    """Write a run's page to ``out`` (by default into the run folder), and its figures as SVG and
    PNG into the folder ``figures`` where one is given.
    """
    for module in ("altair", "jinja2", "markdown_it", "vl_convert"):
        require(module, "report", "The HTML report")
    started = time.perf_counter()
    found = read_run_report(run)
    curve = read_model(run / "curve.json", CurveResult)
    path = run / PAGE if out is None else out
    check_new_file(path, (".html", ".htm"))
    if figures is not None and figures.exists() and not figures.is_dir():
        raise ConfigError(f"{figures} is not a folder. Give a folder for the figures.")
    from layerfuse.report.html import write_page

    sections, saved = write_page(found, curve, path, figures)
    reporter.note(f"report: {path}")
    return ReportResult(
        run=str(run),
        report=str(path),
        n_bytes=path.stat().st_size,
        sections=tuple(section.id for section in sections),
        figures=tuple(map(str, saved)),
        seconds=time.perf_counter() - started,
    )


def try_report(run: Path, reporter: Reporter) -> None:
    """Write the page after a fit; without the extra, note how to get it."""
    try:
        report(run, None, None, reporter)
    except MissingExtraError:
        reporter.note("no report.html; to get one: pip install 'layerfuse[report]'")
