"""Measuring, training and using: ``fit``, ``profile``, ``compare``, ``curve`` and others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerfuse.cli.options import (
    AsJson,
    Chat,
    ConfigFile,
    Data,
    Device,
    DeviceOrAuto,
    Dtype,
    Encoder,
    LabelColumn,
    Layers,
    MaxLength,
    Pooling,
    Quiet,
    Report,
    Sample,
    StoreFolder,
    Template,
    TextColumn,
    Verbose,
    by_encoder,
    settings,
)
from layerfuse.cli.options import shares as read_shares
from layerfuse.cli.output import finish, print_json, reporter

__all__ = ["compare", "curve", "demo", "evaluate", "fit", "predict", "profile", "report"]

_Bundle = Annotated[Path, typer.Argument(metavar="RUN", help="A bundle or run folder.")]
_Moved = Annotated[
    list[str] | None,
    typer.Option(
        "--encoder", "-e", help="NAME=PATH: where an encoder of the run lies now. Repeat."
    ),
]


def fit(
    data: Data,
    test: Annotated[str | None, typer.Option(help="A file with test rows.")] = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    encoder: Encoder = None,
    template: Template = None,
    chat: Chat = None,
    layers: Layers = None,
    pooling: Pooling = None,
    selection: Annotated[
        str | None, typer.Option(help="greedy, top_k, best or last (greedy).")
    ] = None,
    max_blocks: Annotated[int | None, typer.Option(help="The most blocks to fuse (5).")] = None,
    max_dims: Annotated[int | None, typer.Option(help="The most dimensions to fuse.")] = None,
    max_ms: Annotated[
        float | None, typer.Option(help="The most milliseconds that a text may take.")
    ] = None,
    max_parameters: Annotated[
        int | None, typer.Option(help="The most parameters of the layers that are run.")
    ] = None,
    max_memory_mb: Annotated[
        float | None, typer.Option(help="The most MB of weights of the layers that are run.")
    ] = None,
    fusion: Annotated[
        str | None,
        typer.Option(
            help="auto, concat, sum, mean, hadamard, matmul, quaternion, cooccurrence, tensor, "
            "scalar_mix, gated, bilinear, voting or stacking; most also as NAME+residual (auto)."
        ),
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="auto, ridge, logistic, kernel or mlp (auto).")
    ] = None,
    class_weight: Annotated[
        str | None, typer.Option(help="balanced weighs rare classes up.")
    ] = None,
    parts: Annotated[
        str | None,
        typer.Option(
            help="Rows that are parts of longer rows, where most are: auto or keep (auto)."
        ),
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(help="temperature or none (temperature).")
    ] = None,
    max_length: MaxLength = None,
    device: Device = None,
    dtype: Dtype = None,
    cv: Annotated[int | None, typer.Option(help="Folds of the nested resampling (5).")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of folds and samples (0).")] = None,
    sample: Sample = None,
    store: StoreFolder = None,
    scout: Annotated[
        str | None,
        typer.Option(
            metavar="ROWS",
            help="Above so many new texts, choose on a sample and read the others only up to the "
            "layers chosen; or off (20000).",
        ),
    ] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="The most tokens of a batch.")] = None,
    out: Annotated[str | None, typer.Option(help="The run folder (runs/NAME-TIME).")] = None,
    report: Report = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure every layer, choose, fuse, train, evaluate and save."""
    chosen = settings(locals())
    from layerfuse import commands
    from layerfuse.report import render_fit

    finish(commands.fit(chosen, reporter(quiet, verbose)), as_json, render_fit)


def profile(
    data: Data,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    encoder: Encoder = None,
    template: Template = None,
    chat: Chat = None,
    layers: Layers = None,
    pooling: Pooling = None,
    scorer: Annotated[str, typer.Option(help="ridge, or the slower logistic.")] = "ridge",
    max_length: MaxLength = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sample (0).")] = None,
    sample: Sample = None,
    store: StoreFolder = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score every layer for a dataset, without training anything."""
    chosen = settings(locals())
    from layerfuse import commands
    from layerfuse.report import render_scores

    finish(commands.profile(chosen, scorer, reporter(quiet, verbose)), as_json, render_scores)


def compare(
    data: Data,
    pairs: Annotated[
        str, typer.Option(help="encoders, each at its best block; or blocks.")
    ] = "encoders",
    to: Annotated[
        str | None,
        typer.Option(help="Blocks in use, with commas, such as mpnet:8:mean (the best block)."),
    ] = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    encoder: Encoder = None,
    template: Template = None,
    chat: Chat = None,
    layers: Layers = None,
    pooling: Pooling = None,
    max_length: MaxLength = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Annotated[int | None, typer.Option(help="Seed of samples and intervals (0).")] = None,
    sample: Sample = None,
    store: StoreFolder = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure which encoders or layers are worth combining, and what to add next."""
    chosen = settings(locals())
    used = None if to is None else tuple(part.strip() for part in to.split(","))
    from layerfuse import commands
    from layerfuse.report import render_comparison

    result = commands.compare(chosen, pairs, used, reporter(quiet, verbose))
    finish(result, as_json, render_comparison)


def curve(
    data: Data,
    test: Annotated[str | None, typer.Option(help="A file with test rows.")] = None,
    shares: Annotated[
        str, typer.Option(help="Percentages of the labels, with commas.")
    ] = "1,2,5,10,25,50,100",
    repeats: Annotated[int, typer.Option(help="Draws for each share.")] = 5,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    encoder: Encoder = None,
    template: Template = None,
    chat: Chat = None,
    layers: Layers = None,
    pooling: Pooling = None,
    selection: Annotated[
        str | None, typer.Option(help="greedy, top_k, best or last (greedy).")
    ] = None,
    max_blocks: Annotated[int | None, typer.Option(help="The most blocks to fuse (5).")] = None,
    fusion: Annotated[
        str | None, typer.Option(help="As of fit; auto searches in each draw, slowly (concat).")
    ] = None,
    head: Annotated[str | None, typer.Option(help="As of fit (ridge).")] = None,
    max_length: MaxLength = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Annotated[int | None, typer.Option(help="Seed of draws and intervals (0).")] = None,
    sample: Sample = None,
    store: StoreFolder = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the result here; RUN/curve.json is for RUN's report.")
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure how many labels it takes: last layer, best block and fusion with few and many."""
    chosen = settings(locals(), fusion="concat", head="ridge")
    percentages = read_shares(shares)
    from layerfuse import commands
    from layerfuse.report import render_curve

    result = commands.curve(chosen, reporter(quiet, verbose), percentages, repeats, out)
    finish(result, as_json, render_curve)


def predict(
    bundle: _Bundle,
    data: Annotated[str, typer.Argument(help="A file with texts.")],
    text_column: TextColumn = None,
    out: Annotated[Path | None, typer.Option(help="Write a CSV here instead of printing.")] = None,
    encoder: _Moved = None,
    device: DeviceOrAuto = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Label texts with a saved classifier; prints CSV."""
    from layerfuse import commands

    notes = reporter(quiet, verbose)
    places = by_encoder("--encoder", encoder or [])
    result = commands.predict(bundle, data, text_column, places, device, out, notes)
    text = commands.write_predictions(result, out)
    if as_json:
        print_json(result)
    elif out is None:
        typer.echo(text, nl=False)
    if out is not None:
        notes.note(f"wrote {len(result['predictions'])} rows to {out}")


def evaluate(
    bundle: _Bundle,
    data: Data,
    split: Annotated[str | None, typer.Option(help="Which split (test if there is one).")] = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    encoder: _Moved = None,
    device: DeviceOrAuto = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure a saved classifier on labelled rows, with intervals."""
    from layerfuse import commands
    from layerfuse.report import render_evaluation

    places = by_encoder("--encoder", encoder or [])
    notes = reporter(quiet, verbose)
    result = commands.evaluate(
        bundle, data, split, text_column, label_column, places, device, notes
    )
    finish(result, as_json, render_evaluation)


def report(
    run: Annotated[Path, typer.Argument(help="A run folder of fit or demo.")],
    out: Annotated[Path | None, typer.Option(help="The page (RUN/report.html).")] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Write each figure as SVG and PNG into this folder too.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make a run into one HTML page that can be sent to a colleague."""
    from layerfuse import commands
    from layerfuse.report import render_written

    result = commands.report(run, out, figures, reporter(quiet, verbose))
    finish(result, as_json, render_written)


def demo(
    out: Annotated[str, typer.Option(help="The run folder; an older demo there is replaced.")] = (
        "runs/demo"
    ),
    sample: Annotated[int, typer.Option(help="Training rows, stratified.")] = 1200,
    report: Report = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """The whole way on a part of R8 with two small encoders, in minutes."""
    from layerfuse import commands
    from layerfuse.report import render_demo

    wanted = report is not False
    result = commands.demo(Path(out), sample, reporter(quiet, verbose), report=wanted)
    finish(result, as_json, render_demo)
