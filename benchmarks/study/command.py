"""``python -m benchmarks study``: measure, then write tables, figures and pages."""

from __future__ import annotations

import argparse
import shlex
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from benchmarks.study.claims import claims_of
from benchmarks.study.evidence import Evidence
from benchmarks.study.figures import draw_all
from benchmarks.study.inputs import DATASETS, PARTS, PRESETS, StudySettings
from benchmarks.study.measure import run_study
from benchmarks.study.page import FIGURES, page_of, write_html
from layerfuse.cli.console import TerminalReporter
from layerfuse.errors import ConfigError, LayerfuseError
from layerfuse.files import atomic_write
from layerfuse.options import POOLING_NAMES
from layerfuse.progress import SILENT

_COLUMNS = 80


def main(arguments: Sequence[str]) -> int:
    """Run or resume the study; 0 on success, 2 on a user's mistake, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    command = shlex.join(["python", "-m", "benchmarks", "study", *arguments])
    settings = StudySettings(
        preset=options.preset,
        datasets=_unique(options.datasets),
        encoders=_unique(options.encoders or PRESETS[options.preset]),
        poolings=_unique(options.poolings),
        seeds=options.seeds,
        sample=options.sample,
        trusted=_unique(options.trust),
        parts=tuple(part for part in PARTS if part in options.only),
    )
    out = options.out or Path("results", options.preset)
    reporter = SILENT if options.quiet else TerminalReporter()
    try:
        if out.exists() and not (out / "raw").is_dir() and (out.is_file() or any(out.iterdir())):
            raise ConfigError(f"{out} is something other than a study. Choose another --out.")
        reused = run_study(
            settings, out, command, reporter, store=options.store, device=options.device
        )
        publish(out, figures=not options.no_figures)
    except LayerfuseError as error:
        print(f"study: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"study: interrupted. To resume:\n  {command}", file=sys.stderr)
        return 130
    evidence = Evidence.read(out)
    for claim in claims_of(evidence):
        print(textwrap.fill(claim.title, _COLUMNS))
    for name, reason in evidence.index["skipped"].items():
        print(textwrap.fill(f"skipped: {name}: {reason}", _COLUMNS))
    measured = len(evidence.units) - reused
    print(f"{measured} units measured, {reused} reused; read {out / 'summary.md'}")
    return 0


def publish(folder: Path, *, figures: bool = True) -> None:
    """Write ``tables``, ``figures``, ``summary.md`` and ``report.html`` from raw results alone."""
    for name, table in Evidence.read(folder).tables().items():
        with atomic_write(folder / "tables" / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
    if figures:
        draw_all(Evidence.read(folder), folder / FIGURES)
    summary = folder / "summary.md"
    with atomic_write(summary) as temporary:
        temporary.write_text(page_of(folder, "."), encoding="utf-8")
    write_html(summary, folder / "report.html")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks study",
        description="Measure every layer, every fusion and what it costs on several datasets, and "
        "say which of the papers' claims are confirmed. The same command resumes a stopped run.",
    )
    add, poolings = parser.add_argument, StudySettings.poolings
    add("--preset", choices=PRESETS, default="packaged", help="paper needs a GPU and the Hub")
    add("--datasets", nargs="+", default=DATASETS, help=f"default: {' '.join(DATASETS)}")
    add("--encoders", nargs="+", help="default: the preset's; NAME=PATH renames")
    add("--poolings", nargs="+", choices=POOLING_NAMES, default=poolings, help=" ".join(poolings))
    add("--seeds", type=_positive, default=1, help="draws of training rows for the fusions")
    add("--sample", type=_positive, help="use a stratified part of this many rows")
    add("--only", nargs="+", choices=PARTS, default=PARTS, help="run only these parts")
    add("--out", type=Path, help="output folder, resumes (results/PRESET)")
    add("--trust", nargs="+", default=(), help="trust remote code from these repositories")
    add("--no-figures", action="store_true", help="tables and text only")
    add("--store", help="folder of the embedding cache")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    add("--quiet", action="store_true", help="no progress")
    return parser


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected at least 1")
    return int(text)


def _unique(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))
