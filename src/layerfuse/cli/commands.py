"""The commands: each hands its typed settings to a function of `layerfuse.commands` and prints.

What loads numpy or torch is imported inside a command, so that ``--help`` stays quick.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

from layerfuse._version import __version__
from layerfuse.cli.console import Output, print_json, write_data
from layerfuse.cli_options import (
    BlocksInUse,
    Bundle,
    CurveConfig,
    Device,
    Dtype,
    EvaluateConfig,
    ExportConfig,
    ExtractConfig,
    FitConfig,
    KeepTexts,
    PredictConfig,
    ReadConfig,
    ServeConfig,
    SettingsFile,
    Shares,
    Store,
    TestFile,
    WriteReport,
    count,
    option,
)
from layerfuse.errors import ConfigError, require


def _shown(value: object) -> str | None:
    """A default as it would be typed; None hides it."""
    if isinstance(value, tuple | dict):
        return ",".join(map(str, value)) or None
    return None if value is None else str(value)


app = App(
    name="layerfuse",
    help="Find, fuse and ship the layers of frozen language models that classify your texts best.",
    version=f"layerfuse {__version__}",
    version_flags="--version",
    help_format="plaintext",
    default_parameter=Parameter(negative=(), show_default=_shown),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
_models = App(name="models", help="Named encoders: list, download and check them.")
_datasets = App(name="datasets", help="Named datasets: list and download them.")
_store = App(name="store", help="Embedding cache: list, verify and prune it.")

_PRINT = Output()


@app.command
def fit(settings: FitConfig, *, config: SettingsFile = None, output: Output = _PRINT) -> None:
    """Measure every layer, choose, fuse, train, evaluate and save."""
    from layerfuse.commands.fit import fit as run

    output.show(run(settings, output.reporter))


@app.command
def extract(
    settings: ExtractConfig, *, config: SettingsFile = None, output: Output = _PRINT
) -> None:
    """Read all rows into an embedding cache, on one machine or many, for fit to find them there."""
    from layerfuse.commands.extract import extract as run

    output.show(run(settings, output.reporter))


@app.command
def predict(settings: PredictConfig, *, output: Output = _PRINT) -> None:
    """Label texts with a saved classifier; printed as CSV."""
    from layerfuse.commands.predict import predict as run

    is_shown = settings.out in (None, "-") and not output.as_json
    # The engine ray redirects what is printed while it runs.
    show = partial(write_data, to=sys.stdout) if is_shown else None
    result = run(settings, output.reporter, show)
    if output.as_json:
        print_json(result)
    if result.out is not None:
        output.reporter.note(f"wrote {result.rows} rows to {result.out}")


@app.command
def serve(settings: ServeConfig, *, config: SettingsFile = None, output: Output = _PRINT) -> None:
    """Serve saved classifiers over HTTP, with a page for people; LAYERFUSE_TOKEN protects it."""
    if output.as_json:
        raise ConfigError(
            "A server has no result to print. Leave out --json: its log lines are JSON."
        )
    require("fastapi", "serve", "A server")
    from layerfuse.serving.app import serve as run

    run(settings, output.reporter)


@app.command
def evaluate(settings: EvaluateConfig, *, output: Output = _PRINT) -> None:
    """Measure a saved classifier on labeled rows, with confidence intervals."""
    from layerfuse.commands.predict import evaluate as run

    output.show(run(settings, output.reporter))


@app.command
def profile(
    settings: ReadConfig,
    *,
    scorer: Annotated[
        str, option("Probe; logistic is slower.", choices=("ridge", "logistic"))
    ] = "ridge",
    out: Annotated[
        Path | None,
        option("Table of all blocks (csv, parquet, tex, ...), or figure (svg, pdf, png)."),
    ] = None,
    predictions: Annotated[
        Path | None,
        option("Parquet file for what each block, fitted without the row, predicts for each row."),
    ] = None,
    config: SettingsFile = None,
    output: Output = _PRINT,
) -> None:
    """Score every layer on a dataset, without training a classifier."""
    from layerfuse.commands.analyze import profile as run

    output.show(run(settings, scorer, output.reporter, out, predictions))


@app.command
def compare(
    settings: ReadConfig,
    *,
    pairs: Annotated[
        str,
        option(
            "Pairs of encoders, each at its best block, or of blocks.",
            choices=("encoders", "blocks"),
        ),
    ] = "encoders",
    to: BlocksInUse = None,
    out: Annotated[Path | None, option("Table of all pairs (csv, parquet, tex, ...).")] = None,
    config: SettingsFile = None,
    output: Output = _PRINT,
) -> None:
    """Measure which encoders or layers are worth combining, and what to add next."""
    from layerfuse.commands.analyze import compare as run

    output.show(run(settings, pairs, to, output.reporter, out))


@app.command
def curve(
    settings: CurveConfig,
    *,
    shares: Shares = (1, 2, 5, 10, 25, 50, 100),
    repeats: Annotated[int, count("Repeats per training fraction.")] = 5,
    out: Annotated[
        Path | None,
        option("JSON file to write; RUN/curve.json adds it to the report of RUN."),
    ] = None,
    config: SettingsFile = None,
    output: Output = _PRINT,
) -> None:
    """Measure the learning curves of the last layer, the best block and fusion."""
    from layerfuse.commands.analyze import curve as run

    fractions = [share / 100 for share in shares]
    output.show(run(settings, output.reporter, fractions, repeats, out))


@app.command
def audit(
    settings: ReadConfig,
    *,
    test: TestFile = None,
    labels: Annotated[
        bool,
        option(
            "Find likely label errors with encoders, and rank the training rows by them.",
            show_default=False,
        ),
    ] = False,
    out: Annotated[
        Path | None, option("File for all rows, ranked: csv, tsv, jsonl (or .gz) or parquet.")
    ] = None,
    texts: KeepTexts = True,
    config: SettingsFile = None,
    output: Output = _PRINT,
) -> None:
    """Find duplicates, conflicting labels, train/test leaks, empty and long texts, label errors."""
    from layerfuse.commands.analyze import audit_data, audit_labels

    whole = FitConfig(**vars(settings), test=test, texts=texts)
    if labels:
        output.show(audit_labels(whole, out, output.reporter))
    elif out is not None:
        raise ConfigError("--out writes the rows that --labels ranks. Add --labels, or drop --out.")
    else:
        output.show(audit_data(whole, output.reporter))


@app.command
def report(
    run: Annotated[str | Path, option("Run folder of fit or demo, or its URL.")],
    *,
    out: Annotated[Path | None, option("HTML file (default: RUN/report.html).")] = None,
    figures: Annotated[Path | None, option("Folder for each figure as SVG and PNG.")] = None,
    output: Output = _PRINT,
) -> None:
    """Write the HTML report of a run, one file that can be sent to a colleague."""
    from layerfuse.commands.fit import write_report

    output.show(write_report(run, out, figures, output.reporter))


@app.command
def export(settings: ExportConfig, *, output: Output = _PRINT) -> None:
    """Write a saved classifier for other tools, and check that it predicts the same."""
    from layerfuse.commands.export import export as run

    output.show(run(settings, output.reporter))


@app.command
def push(
    run: Bundle,
    repository: Annotated[str, option("Repository of the Hub, owner/name.")],
    *,
    private: Annotated[bool, option("Make a new repository private.")] = False,
    dry_run: Annotated[
        Path | None, option("Folder to write what would be uploaded to; nothing is uploaded.")
    ] = None,
    output: Output = _PRINT,
) -> None:
    """Upload a saved classifier with a model card to the Hugging Face Hub."""
    from layerfuse.commands.export import push as upload

    output.show(upload(run, repository, private, dry_run, output.reporter))


@app.command
def demo(
    *,
    out: Annotated[Path, option("Run folder; an older demo in it is replaced.")] = Path(
        "runs/demo"
    ),
    sample: Annotated[int, count("Number of training rows, stratified.")] = 1200,
    report: WriteReport = True,
    output: Output = _PRINT,
) -> None:
    """Run an end-to-end demo on a subset of R52 with a small encoder, in about a minute."""
    from layerfuse.commands.fit import demo as run

    output.show(run(out, sample, output.reporter, report=report))
    output.reporter.note("your own data: layerfuse fit your.csv  # columns text and label")


@_models.command(name="list")
def _list_models(*, output: Output = _PRINT) -> None:
    """List the encoders that need no Hub."""
    from layerfuse.commands.assets import list_models

    output.show(list_models())


@_models.command(name="pull")
def _pull_model(
    name: Annotated[str, option("Name of an encoder.")],
    *,
    accept_terms: Annotated[
        bool, option("Accept the encoder's terms of use, which are shown.", show_default=False)
    ] = False,
    output: Output = _PRINT,
) -> None:
    """Download a named encoder into the user's cache."""
    from layerfuse.commands.assets import pull_model

    output.show(pull_model(name, output.reporter, accept_terms=accept_terms))


@_models.command(name="check")
def _check_model(
    name: Annotated[str, option("Name, model folder, .gguf file or Hub name.")],
    *,
    device: Device = "auto",
    dtype: Dtype = "auto",
    output: Output = _PRINT,
) -> int:
    """Check that a text gets the same embedding alone, in a batch and from a model cut short."""
    from layerfuse.commands.assets import check_model

    result = check_model(name, device, dtype, output.reporter)
    output.show(result)
    return 0 if result.ok else 2


@_datasets.command(name="list")
def _list_datasets(*, output: Output = _PRINT) -> None:
    """List the named datasets."""
    from layerfuse.commands.assets import list_datasets

    output.show(list_datasets())


@_datasets.command(name="pull")
def _pull_dataset(
    name: Annotated[str, option("Name of a dataset.")], *, output: Output = _PRINT
) -> None:
    """Download a named dataset into the user's cache."""
    from layerfuse.commands.assets import pull_data

    output.show(pull_data(name, output.reporter))


@_store.command(name="ls")
def _list_store(*, store: Store = None, output: Output = _PRINT) -> None:
    """List what the embedding cache holds."""
    from layerfuse.commands.assets import list_store

    output.show(list_store(store))


@_store.command(name="verify")
def _verify_store(*, store: Store = None, output: Output = _PRINT) -> int:
    """Verify every checksum; damaged shards are set aside and computed again when needed."""
    from layerfuse.commands.assets import verify_store

    result = verify_store(store, output.reporter)
    output.show(result)
    return 2 if result.damaged else 0


@_store.command(name="prune")
def _prune_store(
    *,
    store: Store = None,
    encoder: Annotated[str | None, option("Only embeddings of this encoder.")] = None,
    older_than: Annotated[
        float | None,
        option("Only embeddings unused for this many days.", validator=Number(gte=0)),
    ] = None,
    everything: Annotated[bool, option("All embeddings.", "--all", show_default=False)] = False,
    output: Output = _PRINT,
) -> None:
    """Delete embeddings from the cache, and list which."""
    from layerfuse.commands.assets import prune_store

    output.show(prune_store(store, encoder, older_than, everything))


for _group in (_models, _datasets, _store):
    app.command(_group)
app.register_install_completion_command()
