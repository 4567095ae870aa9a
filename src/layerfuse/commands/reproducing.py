"""The study: ``reproduce``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layerfuse.commands.paths import check_results_folder, open_store
from layerfuse.commands.report import check_report_extra
from layerfuse.progress import Reporter
from layerfuse.study import make_settings
from layerfuse.study import reproduce as run_study
from layerfuse.study.publishing import publish

__all__ = ["reproduce"]


def reproduce(
    out: Path,
    reporter: Reporter,
    *,
    preset: str = "packaged",
    datasets: Sequence[str] | None = None,
    encoders: Sequence[str] | None = None,
    poolings: Sequence[str] | None = None,
    seeds: int = 1,
    sample: int | None = None,
    parts: Sequence[str] | None = None,
    trusted: Sequence[str] = (),
    store: str | None = None,
    device: str = "auto",
    figures: bool = True,
) -> dict[str, Any]:
    """Run the study, or go on with it, and write tables, figures, the summary and a page of it.

    Raises
    ------
    ConfigError
        For a setting that cannot be used, or where no dataset or encoder is left.
    StorageError
        When ``out`` is a folder of something else, or cannot be written to.
    MissingExtraError
        When figures are asked for and their packages are not installed; before any work.
    """
    settings = make_settings(
        out,
        preset=preset,
        datasets=datasets,
        encoders=encoders,
        poolings=poolings,
        seeds=seeds,
        sample=sample,
        store=store,
        device=device,
        trusted=trusted,
        parts=parts,
    )
    check_results_folder(out)
    if figures:
        check_report_extra()
    result = run_study(settings, open_store(store, new=True), reporter)
    written = publish(out, figures=figures, reporter=reporter)
    if figures:
        from layerfuse.report.study_page import write_study_page

        page = write_study_page(out, out / "report.html")
        reporter.note(f"report: {page}")
    return {**result, "out": str(out), "claims": written}
