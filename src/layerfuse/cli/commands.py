"""The commands: each hands its typed settings to a function of `layerfuse.commands` and prints.

What loads numpy or torch is imported inside a command, so that ``--help`` stays quick.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

from layerfuse._version import __version__
from layerfuse.cli.console import Output, print_json, visible, write_data
from layerfuse.cli_options import (
    EXPORT_FORMATS,
    BlocksInUse,
    Bundle,
    CurveConfig,
    Data,
    Device,
    Dtype,
    FitConfig,
    KeepTexts,
    LabelColumn,
    MovedEncoders,
    ReadConfig,
    ServeConfig,
    SettingsFile,
    Shares,
    Store,
    StreamConfig,
    TestFile,
    TextColumn,
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
    settings: ReadConfig,
    *,
    stream: StreamConfig = StreamConfig(),  # noqa: B008  # frozen
    out: Annotated[
        Path | None, option("File for all blocks (npz or parquet), beside the cache.")
    ] = None,
    config: SettingsFile = None,
    output: Output = _PRINT,
) -> None:
    """Read all rows into an embedding cache, on one machine or many, for fit to find them there."""
    from layerfuse.commands.extract import extract as run

    output.show(run(settings, stream, output.reporter, out))


@app.command
def predict(
    run: Bundle,
    data: Annotated[
        str | None,
        option("File, URL, dataset name, or - (standard input).", allow_leading_hyphen=True),
    ] = None,
    *,
    text: Annotated[
        tuple[str, ...],
        option("A text, in place of a file (repeatable).", allow_leading_hyphen=True),
    ] = (),
    text_column: TextColumn = None,
    out: Annotated[
        str | None,
        option(
            "File or URL to write: csv, tsv, jsonl (or .gz) or parquet; - prints CSV.",
            allow_leading_hyphen=True,
        ),
    ] = None,
    probabilities: Annotated[
        bool, option("Add the probability of every class.", show_default=False)
    ] = False,
    explain: Annotated[
        bool,
        option("Add the nearest training texts (after fit --explain).", show_default=False),
    ] = False,
    resume: Annotated[bool, option("Go on with the finished parts of a stopped run.")] = False,
    encoders: MovedEncoders = {},  # noqa: B006  # only read
    device: Device = "auto",
    stream: StreamConfig = StreamConfig(),  # noqa: B008  # frozen
    output: Output = _PRINT,
) -> None:
    """Label texts with a saved classifier; printed as CSV."""
    from layerfuse.commands.predict import as_csv, predict_texts
    from layerfuse.commands.predict import predict as label

    if (data is None) != bool(text):
        raise ConfigError("Give a file with texts, or texts with --text, and not both.")
    if data is None:
        if out is not None:
            raise ConfigError("--text prints what it predicts. Leave --out, or give a file.")
        found = predict_texts(
            run,
            text,
            encoders,
            device,
            output.reporter,
            all_classes=probabilities,
            explain=explain,
        )
        if output.as_json:
            print_json(found)
        else:
            write_data(as_csv(found))
        return

    printed = sys.stdout

    def show(table: bytes) -> None:
        text = table.decode()
        printed.write(visible(text) if printed.isatty() else text)
        printed.flush()

    result = label(
        run,
        data,
        text_column,
        encoders,
        device,
        None if out == "-" else out,
        output.reporter,
        stream=stream,
        resume=resume,
        all_classes=probabilities,
        explain=explain,
        show=show if out in (None, "-") and not output.as_json else None,
    )
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
    from layerfuse.serving.command import serve as run

    run(settings, output.reporter)


@app.command
def evaluate(
    run: Bundle,
    data: Data,
    *,
    split: Annotated[str | None, option("Split (default: test if there is one).")] = None,
    against: Annotated[
        Path | None, option("Run folder or bundle to compare with on the same rows.")
    ] = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    encoders: MovedEncoders = {},  # noqa: B006  # only read
    device: Device = "auto",
    output: Output = _PRINT,
) -> None:
    """Measure a saved classifier on labelled rows, with confidence intervals."""
    from layerfuse.commands.predict import evaluate as measure

    columns = text_column, label_column
    output.show(
        measure(run, data, split, *columns, encoders, device, output.reporter, against=against)
    )


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
    config: SettingsFile = None,
    output: Output = _PRINT,
) -> None:
    """Score every layer on a dataset, without training a classifier."""
    from layerfuse.commands.fit import profile as run

    output.show(run(settings, scorer, output.reporter, out))


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
            "Look for wrong labels: read the texts with encoders, and rank the training rows.",
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
    """Find duplicates, conflicting labels, train/test leaks, empty and long texts, wrong labels."""
    from layerfuse.commands.audit import audit_data, audit_labels

    whole = FitConfig(**vars(settings), test=test, texts=texts)
    if labels:
        output.show(audit_labels(whole, out, output.reporter))
    elif out is not None:
        raise ConfigError("--out writes the rows that --labels ranks. Add --labels, or leave it.")
    else:
        output.show(audit_data(whole, output.reporter))


@app.command
def report(
    run: Annotated[Path, option("Run folder of fit or demo.")],
    *,
    out: Annotated[Path | None, option("HTML file (default: RUN/report.html).")] = None,
    figures: Annotated[Path | None, option("Folder for each figure as SVG and PNG.")] = None,
    output: Output = _PRINT,
) -> None:
    """Write the HTML report of a run, one file that can be sent to a colleague."""
    from layerfuse.commands.report import report as write

    output.show(write(run, out, figures, output.reporter))


@app.command
def export(
    run: Bundle,
    *,
    format: Annotated[  # noqa: A002  # the option's name
        str, option("What to write.", choices=EXPORT_FORMATS)
    ],
    out: Annotated[Path, option("Folder to create.")],
    data: Annotated[
        str | None, option("File with texts to compare on (default: the run's test rows).")
    ] = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    block: Annotated[
        str | None,
        option("One block alone, such as mpnet:8:mean, without the classifier.", metavar="BLOCK"),
    ] = None,
    int8: Annotated[bool, option("Quantize the ONNX graph, and measure what it costs.")] = False,
    encoders: MovedEncoders = {},  # noqa: B006  # only read
    output: Output = _PRINT,
) -> None:
    """Write a saved classifier for other tools, and check that it predicts the same."""
    from layerfuse.commands.export import export as write

    result = write(
        run, format, out, data, text_column, label_column, block, int8, encoders, output.reporter
    )
    output.show(result)


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
