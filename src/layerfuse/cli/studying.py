"""The study of several datasets: ``reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerfuse.cli.options import AsJson, DeviceOrAuto, Quiet, Sample, StoreFolder, Verbose
from layerfuse.cli.output import finish, reporter

__all__ = ["reproduce"]


def reproduce(
    datasets: Annotated[
        str | None, typer.Option(help="Datasets, with commas (sst2,mr,r8,r52).")
    ] = None,
    encoders: Annotated[
        str | None,
        typer.Option(help="Encoders, with commas, in place of the preset's; NAME=PATH renames."),
    ] = None,
    preset: Annotated[str, typer.Option(help="packaged, or paper for a GPU and the Hub.")] = (
        "packaged"
    ),
    pooling: Annotated[
        str | None, typer.Option(help="Poolings, with commas (mean,last,max).")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Draws of training rows for the fusions.")] = 1,
    sample: Sample = None,
    only: Annotated[
        str | None,
        typer.Option(help="Of profiles,fusions,complementarity,curves,resources these parts."),
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="The results folder; goes on there (results/PRESET).")
    ] = None,
    trust: Annotated[
        list[str] | None,
        typer.Option(help="A Hub name whose own code may run. Repeat."),
    ] = None,
    no_figures: Annotated[bool, typer.Option("--no-figures", help="Tables and text only.")] = (
        False
    ),
    store: StoreFolder = None,
    device: DeviceOrAuto = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Every layer, every fusion and what it costs, on several datasets; goes on if interrupted."""
    from layerfuse import commands
    from layerfuse.report import render_study

    result = commands.reproduce(
        Path(out) if out is not None else Path("results") / preset,
        reporter(quiet, verbose),
        preset=preset,
        datasets=_names(datasets),
        encoders=_names(encoders),
        poolings=_names(pooling),
        seeds=seeds,
        sample=sample,
        parts=_names(only),
        trusted=trust or (),
        store=store,
        device=device,
        figures=not no_figures,
    )
    finish(result, as_json, render_study)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]
