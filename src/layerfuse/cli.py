"""The command line: parsing and printing only; the work is in `layerfuse.commands`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layerfuse import __version__
from layerfuse.errors import ConfigError, LayerfuseError

if TYPE_CHECKING:
    from layerfuse.config import FitConfig
    from layerfuse.events import Reporter

__all__ = ["main"]

# rich's help pages would triple the time of --help.
_PLAIN: dict[str, Any] = {
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "no_args_is_help": True,
}
app = typer.Typer(
    add_completion=False,
    help="Find, fuse and ship the layers of frozen language models that classify your texts best.",
    **_PLAIN,
)
models = typer.Typer(help="Named encoders: list, pull and check them.", **_PLAIN)
datasets = typer.Typer(help="Named datasets: list and pull them; audit any dataset.", **_PLAIN)
store = typer.Typer(help="The cache of embeddings: look, verify, prune.", **_PLAIN)
app.add_typer(models, name="models")
app.add_typer(datasets, name="datasets")
app.add_typer(store, name="store")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes.")]
Data = Annotated[
    str, typer.Argument(help="A file, a folder of splits, a dataset's name, or hub:owner/name.")
]
TextColumn = Annotated[str | None, typer.Option(help="The column that holds the text.")]
LabelColumn = Annotated[str | None, typer.Option(help="The column that holds the label.")]
Encoder = Annotated[
    list[str] | None,
    typer.Option(
        "--encoder", "-e", help="A name, folder, .gguf file or Hub name; NAME=PATH renames. Repeat."
    ),
]
Template = Annotated[
    list[str] | None, typer.Option(help="NAME='… {text} …' for an encoder. Repeat.")
]
Chat = Annotated[
    list[str] | None, typer.Option(help="NAME='question' for an encoder's chat template. Repeat.")
]
LayersOption = Annotated[str | None, typer.Option(help="all, or numbers such as 0,6,-1.")]
Pooling = Annotated[
    list[str] | None,
    typer.Option(help="mean, cls, last, max, weighted_mean, mean_no_sink. Repeat, or use commas."),
]
MaxLength = Annotated[int | None, typer.Option(help="The most tokens read of a text (512).")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")]
StoreOption = Annotated[str | None, typer.Option(help="The folder that keeps embeddings.")]
Sample = Annotated[int | None, typer.Option(help="Use a stratified part of this many rows.")]
Config = Annotated[Path | None, typer.Option(help="A TOML file with settings.")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"layerfuse {__version__}")
        raise typer.Exit


@app.command()
def fit(
    data: Data,
    test: Annotated[str | None, typer.Option(help="A file with test rows.")] = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    encoder: Encoder = None,
    template: Template = None,
    chat: Chat = None,
    layers: LayersOption = None,
    pooling: Pooling = None,
    selection: Annotated[str | None, typer.Option(help="greedy, top_k, best or last.")] = None,
    max_blocks: Annotated[int | None, typer.Option(help="The most blocks to fuse (5).")] = None,
    head: Annotated[str | None, typer.Option(help="logistic or ridge.")] = None,
    class_weight: Annotated[
        str | None, typer.Option(help="balanced weighs rare classes up.")
    ] = None,
    calibration: Annotated[str | None, typer.Option(help="temperature or none.")] = None,
    max_length: MaxLength = None,
    device: Device = None,
    dtype: Dtype = None,
    cv: Annotated[int | None, typer.Option(help="Folds of the nested resampling (5).")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of folds and samples (0).")] = None,
    sample: Sample = None,
    store: StoreOption = None,
    batch_tokens: Annotated[int | None, typer.Option(help="The most tokens of a batch.")] = None,
    out: Annotated[str | None, typer.Option(help="The run folder (runs/NAME-TIME).")] = None,
    config: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure every layer, choose, fuse, train, evaluate and save."""
    from layerfuse import commands
    from layerfuse.report import render_fit

    settings = _settings(locals())
    _finish(commands.fit(settings, _reporter(quiet)), as_json, render_fit)


@app.command()
def profile(
    data: Data,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    encoder: Encoder = None,
    template: Template = None,
    chat: Chat = None,
    layers: LayersOption = None,
    pooling: Pooling = None,
    scorer: Annotated[str, typer.Option(help="ridge, or the slower logistic.")] = "ridge",
    max_length: MaxLength = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sample (0).")] = None,
    sample: Sample = None,
    store: StoreOption = None,
    config: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score every layer for a dataset, without training anything."""
    from layerfuse import commands
    from layerfuse.report import layer_table, render_profile

    def render(result: dict[str, Any], out: Any) -> None:
        render_profile(result["profile"], set(), out)
        out.print()
        out.print(layer_table(result["profile"], set()))

    settings = _settings(locals())
    _finish(commands.profile(settings, scorer, _reporter(quiet)), as_json, render)


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="A bundle or run folder.")],
    data: Annotated[str, typer.Argument(help="A file with texts.")],
    text_column: TextColumn = None,
    out: Annotated[Path | None, typer.Option(help="Write a CSV here instead of printing.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Label texts with a saved classifier; prints CSV."""
    from layerfuse import commands

    result = commands.predict(bundle, data, text_column, device, _reporter(quiet))
    text = commands.write_predictions(result, out)
    if as_json:
        _print_json(result)
    elif out is None:
        typer.echo(text, nl=False)
    else:
        typer.echo(f"wrote {len(result['predictions'])} rows to {out}", err=True)


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="A bundle or run folder.")],
    data: Data,
    split: Annotated[str | None, typer.Option(help="Which split (test if there is one).")] = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a saved classifier on labelled rows, with intervals."""
    from layerfuse import commands

    result = commands.evaluate(
        bundle, data, split, text_column, label_column, device, _reporter(quiet)
    )

    def render(value: dict[str, Any], out: Any) -> None:
        out.print(f"{value['n']} rows of {value['data']} ({value['split']})", highlight=False)
        for name in ("accuracy", "macro_f1", "log_loss", "ece"):
            low, high = value["intervals"][name]
            line = f"{name:9} {value[name]:.4f}  95 % interval {low:.4f} to {high:.4f}"
            out.print(line, highlight=False)

    _finish(result, as_json, render)


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="The run folder; an older demo there is replaced.")] = (
        "runs/demo"
    ),
    sample: Annotated[int, typer.Option(help="Training rows, stratified.")] = 1200,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The whole way on a part of R8 with two small encoders, in minutes."""
    from layerfuse import commands
    from layerfuse.report import render_demo

    _finish(commands.demo(Path(out), sample, _reporter(quiet)), as_json, render_demo)


@models.command("list")
def models_list(as_json: Json = False) -> None:
    """The encoders that need no Hub."""
    from layerfuse import commands
    from layerfuse.report import render_rows

    _finish({"models": commands.list_models()}, as_json, render_rows)


@models.command("pull")
def models_pull(name: str, as_json: Json = False, quiet: Quiet = False) -> None:
    """Download a named encoder into the cache."""
    from layerfuse import commands
    from layerfuse.report import render_rows

    _finish(commands.pull_model(name, _reporter(quiet)), as_json, render_rows)


@models.command("check")
def models_check(
    name: Annotated[str, typer.Argument(help="A name, folder, .gguf file or Hub name.")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check that a model gives a text the same embedding whatever it is batched with."""
    from layerfuse import commands
    from layerfuse.report import render_check

    result = commands.check_model(name, device, dtype, _reporter(quiet))
    _finish(result, as_json, render_check)
    if not result["ok"]:
        raise typer.Exit(2)


@datasets.command("list")
def datasets_list(as_json: Json = False) -> None:
    """The datasets that layerfuse knows by name."""
    from layerfuse import commands
    from layerfuse.report import render_rows

    _finish({"datasets": commands.list_datasets()}, as_json, render_rows)


@datasets.command("pull")
def datasets_pull(name: str, as_json: Json = False, quiet: Quiet = False) -> None:
    """Download a named dataset into the cache."""
    from layerfuse import commands
    from layerfuse.report import render_rows

    _finish(commands.pull_data(name, _reporter(quiet)), as_json, render_rows)


@datasets.command("audit")
def datasets_audit(
    data: Data,
    test: Annotated[str | None, typer.Option(help="A file with test rows.")] = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Duplicates, conflicting labels, train/test leaks, empty and long texts, class counts."""
    from layerfuse import commands
    from layerfuse.report import render_audit

    result = commands.audit_data(data, test, text_column, label_column, _reporter(quiet))
    _finish(result, as_json, render_audit)


@store.command("ls")
def store_ls(store: StoreOption = None, as_json: Json = False) -> None:
    """What the store holds."""
    from layerfuse import commands
    from layerfuse.report import render_rows

    _finish({"sections": commands.list_store(store)}, as_json, render_rows)


@store.command("verify")
def store_verify(store: StoreOption = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Read every byte; damaged shards are set aside and will be computed again."""
    from layerfuse import commands
    from layerfuse.report import render_verify

    result = commands.verify_store(store, _reporter(quiet))
    _finish(result, as_json, render_verify)
    if result["damaged"]:
        raise typer.Exit(2)


@store.command("prune")
def store_prune(
    store: StoreOption = None,
    encoder: Annotated[str | None, typer.Option(help="Only this encoder's embeddings.")] = None,
    older_than: Annotated[
        float | None, typer.Option(help="Only what was not used for this many days.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything.")] = False,
    as_json: Json = False,
) -> None:
    """Delete stored embeddings; say which."""
    from layerfuse import commands
    from layerfuse.report import render_rows

    result = {"removed": commands.prune_store(store, encoder, older_than, everything)}
    _finish(result, as_json, render_rows)


def main() -> int:
    """Run the command line; 0 on success, 2 on a user's mistake, 1 on an internal fault."""
    try:
        app(standalone_mode=False)
    except LayerfuseError as error:
        typer.echo(f"layerfuse: {error}", err=True)
        return 2
    except typer.Exit as error:
        return int(error.exit_code)
    except typer.Abort:
        return _interrupted()
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # the parser's own errors
            error.show()
            return 2
        if os.environ.get("LAYERFUSE_TRACEBACK"):
            raise
        typer.echo(
            f"layerfuse: internal fault, {type(error).__name__}: {error}\n"
            "This should not happen. LAYERFUSE_TRACEBACK=1 shows where it did.",
            err=True,
        )
        return 1
    return 0


def _interrupted() -> int:
    typer.echo(
        "layerfuse: interrupted. Finished embeddings are kept; the same command goes on from there.",
        err=True,
    )
    return 130


def _reporter(quiet: bool) -> Reporter:
    from layerfuse.events import SILENT
    from layerfuse.terminal import TerminalReporter

    return SILENT if quiet else TerminalReporter()


def _finish(
    result: dict[str, Any], as_json: bool, render: Callable[[dict[str, Any], Any], None]
) -> None:
    if as_json:
        _print_json(result)
        return
    from layerfuse.terminal import console

    render(result, console())


def _print_json(result: dict[str, Any]) -> None:
    typer.echo(json.dumps(result, ensure_ascii=False, allow_nan=False))


def _settings(options: dict[str, Any]) -> FitConfig:
    """Options that were given go over the settings file's, and those over the defaults."""
    from layerfuse.config import FitConfig, read_toml

    given: dict[str, Any] = {} if options.get("config") is None else read_toml(options["config"])
    renamed = {"encoder": "encoders", "template": "templates", "chat": "chat_questions"}
    parsers: dict[str, Callable[[Any], Any]] = {
        "encoder": tuple,
        "template": _pairs,
        "chat": _pairs,
        "layers": _layers,
        "pooling": lambda names: tuple(name for text in names for name in text.split(",")),
    }
    known = set(FitConfig.__dataclass_fields__)
    for name, value in options.items():
        field = renamed.get(name, name)
        if value is not None and field in known:
            given[field] = parsers.get(name, lambda value: value)(value)
    return FitConfig(**given)


def _pairs(options: list[str]) -> dict[str, str]:
    pairs = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals:
            raise ConfigError(f"{option!r} should be NAME=VALUE, with an encoder's name.")
        pairs[name] = value
    return pairs


def _layers(text: str) -> str | tuple[int, ...]:
    if text == "all":
        return text
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"--layers {text!r} should be 'all' or numbers such as 0,6,-1."
        ) from error
